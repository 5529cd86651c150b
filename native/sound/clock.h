/* Time of the main loop. */
#ifndef PEDOS_SOUND_CLOCK_H
#define PEDOS_SOUND_CLOCK_H

#include <pulse/mainloop-api.h>
#include <stdint.h>

/* Milliseconds that only go forward. */
int64_t clock_now(void);

struct clock_timer {
    pa_mainloop_api *loop;
    pa_time_event *event;
    void (*run)(void *context);
    void *context;
    int64_t due;
};

/* run is called in the main loop, once each time that the timer is set. */
void clock_timer_init(struct clock_timer *timer, pa_mainloop_api *loop, void (*run)(void *context),
                      void *context);
/* Sets it for then, in place of what it was set for before; NEVER (timing.h) takes it back. */
void clock_timer_set(struct clock_timer *timer, int64_t due);
void clock_timer_free(struct clock_timer *timer);

#endif
