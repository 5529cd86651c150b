/* A microphone of this session that a VM hears. */
#ifndef PEDOS_SOUND_LENT_H
#define PEDOS_SOUND_LENT_H

#include "streams.h"

struct lent;

/* Tells READY, and takes fd. NULL: no memory. */
struct lent *lent_new(struct host *host, const struct link_message *message, int fd);
void lent_free(struct lent *lent);

uint32_t lent_id(const struct lent *lent);
const char *lent_vm(const struct lent *lent);
bool lent_is_over(const struct lent *lent);
/* The recording that it hears now, or NULL. */
const struct recording *lent_recording(const struct lent *lent);

/* Once it returns nothing but silence goes out, and that is told (READY). */
void lent_mute(struct lent *lent, bool is_muted);
/* Whether the device that was lent is still in the list. */
bool lent_is_there(const struct lent *lent);
/* Looks again what it has to do; after a change of the list. */
void lent_update(struct lent *lent);
void lent_hear(struct lent *lent, const int16_t *samples, size_t count);
/* Over by itself: ENDED is told. */
void lent_end(struct lent *lent, const char *why);

#endif
