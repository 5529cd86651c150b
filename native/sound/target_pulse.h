/* What PulseAudio's back end needs to be told; see target.h. */
#ifndef PEDOS_SOUND_TARGET_PULSE_H
#define PEDOS_SOUND_TARGET_PULSE_H

#include <pulse/context.h>

/* Who records, or whether there is something to record, may have changed on the server. */
void target_pulse_look(void);

/* Takes away what a killed run of this program has left in the server. */
void target_pulse_clean(pa_context *server);

#endif
