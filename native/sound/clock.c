#include "clock.h"

#include "timing.h"

#include <pulse/rtclock.h>
#include <pulse/timeval.h>
#include <stddef.h>

int64_t clock_now(void)
{
    return (int64_t)(pa_rtclock_now() / 1000);
}

void clock_timer_init(struct clock_timer *timer, pa_mainloop_api *loop, void (*run)(void *context),
                      void *context)
{
    *timer = (struct clock_timer){.loop = loop, .run = run, .context = context, .due = NEVER};
}

static void fired(pa_mainloop_api *loop, pa_time_event *event, const struct timeval *when,
                  void *context)
{
    struct clock_timer *timer = context;

    (void)event;
    (void)when;
    loop->time_restart(timer->event, NULL);
    timer->due = NEVER;
    timer->run(timer->context);
}

void clock_timer_set(struct clock_timer *timer, int64_t due)
{
    struct timeval when;
    int64_t rest;

    if (due == timer->due)
        return;
    timer->due = due;
    if (due == NEVER) {
        if (timer->event)
            timer->loop->time_restart(timer->event, NULL);
        return;
    }
    rest = due - clock_now();
    pa_gettimeofday(&when);
    pa_timeval_add(&when, rest > 0 ? (pa_usec_t)rest * 1000 : 0);
    if (timer->event)
        timer->loop->time_restart(timer->event, &when);
    else
        timer->event = timer->loop->time_new(timer->loop, &when, fired, timer);
}

void clock_timer_free(struct clock_timer *timer)
{
    if (timer->event)
        timer->loop->time_free(timer->event);
    timer->event = NULL;
    timer->due = NEVER;
}
