/*
 * When things that others do in a hurry have an effect: START and STOP, reports to the agent, and
 * reading of what comes too fast. Pure: the time is given, in milliseconds of any clock that only
 * goes forward.
 */
#ifndef PEDOS_SOUND_TIMING_H
#define PEDOS_SOUND_TIMING_H

#include <stdbool.h>
#include <stdint.h>

#define NEVER INT64_MAX

static inline int64_t sooner(int64_t one, int64_t other)
{
    return one < other ? one : other;
}

/* Level meters and programs that try out a microphone stop and start again within this time. */
#define GATE_CLOSES_MS 500

/* Whether a microphone is recorded for somebody: from the first START until some time after the
 * last STOP. It opens at most twice a second whatever the other side says. */
struct gate {
    bool is_wanted, is_open;
    int64_t closes; /* if it is open and not wanted */
};

/* Both return whether is_open has changed. */
bool gate_want(struct gate *gate, bool is_wanted, int64_t now);
bool gate_tick(struct gate *gate, int64_t now);
/* When the next tick is due. */
int64_t gate_due(const struct gate *gate);

/* Reports of one state to the agent: at most two a second, and the last one always comes. */
#define REPORT_MS 500

struct report {
    bool is_told;
    int64_t again; /* the earliest time of the next one */
};

/* Whether to tell the state now; then it counts as told. */
bool report_tell(struct report *report, bool state, int64_t now);
int64_t report_due(const struct report *report, bool state);

/* A token bucket: so much in a second in the long run, and so much at once. */
struct bucket {
    int64_t a_second, at_once;
    int64_t spent; /* thousandths that are not refilled yet; at most once more than at_once */
    int64_t seen;  /* when that was */
};

/* Takes an amount, also one that is not there any more: then nothing more may be taken until due. */
void bucket_take(struct bucket *bucket, int64_t amount, int64_t now);
/* When something may be taken again; not later than now: at once. */
int64_t bucket_due(struct bucket *bucket, int64_t now);

#endif
