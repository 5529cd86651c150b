#include "rate.h"

#include <math.h>

/*
 * The control. A difference of 1 ms changes the rate by GAIN, and each second of it changes what
 * lasts by GAIN_LASTING. As the fill changes by 1000 ms a second and unit of rate, this is
 * critically damped (GAIN^2 = 4/1000 * GAIN_LASTING) with a time constant of 4 s: 1000 ppm make the
 * fill deviate by 1.5 ms once, and are known to 100 ppm after 16 s. A fill that is 1 ms off by
 * chance, which `look` makes rare, changes the pitch by a twentieth of a percent: not to be heard.
 */
#define GAIN 5e-4
#define GAIN_LASTING 6.25e-5

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

static double bounded(double value, double bound)
{
    return value > bound ? bound : value < -bound ? -bound : value;
}

void rate_init(struct rate *rate)
{
    *rate = (struct rate){.correction = 1.0, .is_waiting = true, .lowest = UINT32_MAX};
}

/* Meanwhile the rate is what was learnt. */
static void look_anew(struct rate *rate)
{
    rate->looked = 0;
    rate->correction = 1.0 + rate->integral;
}

static void wait_for_more(struct rate *rate)
{
    rate->is_waiting = true;
    look_anew(rate);
}

void rate_start(struct rate *rate)
{
    wait_for_more(rate);
    rate->cycle = rate->cycle_now = rate->cycle_for = 0;
    rate->quiet = 0;
    rate->lowest = UINT32_MAX;
}

uint32_t rate_target(const struct rate *rate)
{
    return RATE_BASE + rate->cycle + rate->extra;
}

double rate_correction(const struct rate *rate) { return rate->correction; }

/* The buffer ran empty. What follows at once belongs to the same episode. */
static void ran_empty(struct rate *rate)
{
    if (rate->quiet >= RATE_EPISODE || rate->episodes == 0) {
        rate->episodes++;
        rate->extra = smaller(rate->extra + RATE_EXTRA_STEP, RATE_EXTRA_MAX);
    }
    rate->quiet = 0;
    rate->lowest = UINT32_MAX;
    wait_for_more(rate);
}

static void was_quiet(struct rate *rate, uint32_t wanted, uint32_t left)
{
    rate->lowest = smaller(rate->lowest, left);
    rate->quiet += wanted;
    if (rate->quiet < RATE_BACK_AFTER)
        return;
    /* Kept from the next look: more than what is given back now, so that this causes no episode. */
    if (rate->extra > 0 && rate->lowest > RATE_EXTRA_STEP)
        rate->extra -= smaller(rate->extra, RATE_EXTRA_BACK);
    rate->quiet = RATE_EPISODE;
    rate->lowest = UINT32_MAX;
}

/*
 * The mean of what the first cycles see, and from RATE_LOOK on one that forgets: a late arrival
 * must not be heard as a change of pitch.
 */
static void look(struct rate *rate, double fill, uint32_t wanted)
{
    rate->looked = smaller(rate->looked + wanted, RATE_LOOK);
    rate->fill += (fill - rate->fill) * bounded((double)wanted / rate->looked, 1.0);
}

static void correct(struct rate *rate, double seconds)
{
    double wrong = (rate->fill - rate_target(rate)) / RATE_MS;
    double lasting = bounded(rate->integral + GAIN_LASTING * wrong * seconds, RATE_CORRECTION_MAX);

    rate->correction = 1.0 + bounded(lasting + GAIN * wrong, RATE_CORRECTION_MAX);
    /* While the correction is at its bound, more of what lasts would only be in the way later. */
    if (fabs(rate->correction - 1.0) < RATE_CORRECTION_MAX)
        rate->integral = lasting;
}

/* What is too much, now that the first look at the fill is over. */
static uint32_t trim(struct rate *rate, uint32_t spare)
{
    double excess = rate->fill - rate_target(rate);
    uint32_t drop;

    if (excess <= RATE_TRIM)
        return 0;
    drop = smaller((uint32_t)excess, spare);
    rate->fill -= drop;
    return drop;
}

static void follow_cycle(struct rate *rate, uint32_t cycle)
{
    if (rate->cycle_for >= RATE_CYCLE_FOR) {
        rate->cycle = rate->cycle_now;
        rate->cycle_now = rate->cycle_for = 0;
    }
    rate->cycle_for += cycle;
    rate->cycle_now = larger(rate->cycle_now, cycle);
    rate->cycle = larger(rate->cycle, cycle);
}

struct rate_step rate_cycle(struct rate *rate, uint32_t wanted, uint32_t buffered, uint32_t age)
{
    struct rate_step step = {0, 0};
    uint32_t spare = buffered - smaller(wanted, buffered);
    uint32_t fill = buffered + smaller(age, RATE_AGE_MAX);

    follow_cycle(rate, smaller(wanted, RATE_CYCLE_MAX));
    if (rate->is_waiting) {
        if (fill < rate_target(rate) || buffered < wanted)
            return step;
        rate->is_waiting = false;
        step.drop = smaller(fill - rate_target(rate), spare);
    } else if (buffered < wanted) {
        step.play = buffered;
        ran_empty(rate);
        return step;
    } else if (fill > rate_target(rate) + RATE_OVER) {
        step.drop = smaller(fill - rate_target(rate), spare);
        look_anew(rate);
    }
    if (rate->looked < RATE_LOOK) {
        look(rate, fill - step.drop, wanted);
        if (rate->looked == RATE_LOOK)
            step.drop += trim(rate, spare - step.drop);
    } else {
        look(rate, fill, wanted);
        correct(rate, (double)wanted / RATE_HZ);
    }
    step.play = wanted;
    rate->dropped += step.drop;
    was_quiet(rate, wanted, spare - step.drop);
    return step;
}
