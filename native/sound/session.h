/* All of it together: what the agent wants, and what the sound server has. */
#ifndef PEDOS_SOUND_SESSION_H
#define PEDOS_SOUND_SESSION_H

#include <pulse/mainloop-api.h>

struct session;

/* path is kept. NULL: no memory. */
struct session *session_new(pa_mainloop_api *loop, const char *path);
/* Takes everything out of the sound server again, then calls done. */
void session_stop(struct session *session, void (*done)(void *context), void *context);
void session_free(struct session *session);

#endif
