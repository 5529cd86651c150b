#include "timing.h"

bool gate_want(struct gate *gate, bool is_wanted, int64_t now)
{
    bool was_open = gate->is_open;

    if (!is_wanted && gate->is_wanted)
        gate->closes = now + GATE_CLOSES_MS;
    gate->is_wanted = is_wanted;
    gate->is_open |= is_wanted;
    return gate->is_open != was_open;
}

bool gate_tick(struct gate *gate, int64_t now)
{
    if (!gate->is_open || gate->is_wanted || now < gate->closes)
        return false;
    gate->is_open = false;
    return true;
}

int64_t gate_due(const struct gate *gate)
{
    return gate->is_open && !gate->is_wanted ? gate->closes : NEVER;
}

bool report_tell(struct report *report, bool state, int64_t now)
{
    if (state == report->is_told || now < report->again)
        return false;
    report->is_told = state;
    report->again = now + REPORT_MS;
    return true;
}

int64_t report_due(const struct report *report, bool state)
{
    return state == report->is_told ? NEVER : report->again;
}

static void refill(struct bucket *bucket, int64_t now)
{
    /* A thousandth is refilled in as many milliseconds as there are units a second. */
    bucket->spent -= (now - bucket->seen) * bucket->a_second;
    if (bucket->spent < 0)
        bucket->spent = 0;
    bucket->seen = now;
}

void bucket_take(struct bucket *bucket, int64_t amount, int64_t now)
{
    refill(bucket, now);
    bucket->spent += amount * 1000;
}

int64_t bucket_due(struct bucket *bucket, int64_t now)
{
    int64_t over;

    refill(bucket, now);
    over = bucket->spent - bucket->at_once * 1000;
    return over < 0 ? now : now + over / bucket->a_second + 1;
}
