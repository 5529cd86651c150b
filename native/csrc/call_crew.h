/*
 * Threads that run calls, and the news of these for an event loop.
 *
 * A thread takes one call after the other, from its streams to its end, and no interpreter runs in
 * it. What the event loop has to know waits in the call, at most once each, and one descriptor says
 * that something does: so a call costs its loop one wake-up at its end, and one for each event that
 * it wants to know of.
 */
#ifndef PEDOS_CALL_CREW_H
#define PEDOS_CALL_CREW_H

#include "call_pump.h"

/* Calls that run at once. dom0 lets a VM have 64 as their source and 128 as their target; twice that
 * and more, so that those which are still ending do not keep new ones from beginning. */
#define PV_CREW_CALLS_MAX 512u
/* Threads that wait for a call while none is there: to start one costs a good part of what a call
 * may. Beyond these, one that has run its call ends. */
#define PV_CREW_SPARE 4u

/* After so many milliseconds what is told lazily is told: most services that end at once have done so
 * by then, and nobody notices the delay. */
#define PV_CREW_LAZY_MS 5

/* Descriptors that are given with a call: its three streams, and some that are only closed. */
#define PV_CREW_FDS 6

/* Of one event loop. */
struct pv_crew;

struct pv_crew_news {
    uint64_t call; /* the number that was given for it */
    int event;     /* enum pv_call_event; after PV_CALL_DONE or PV_CALL_UNMET nothing more comes */
    int number;
};

/* NULL: no memory or no descriptor. */
struct pv_crew *pv_crew_new(void);

/* Readable when there are news. */
int pv_crew_fd(const struct pv_crew *crew);

/* Its loop has ended, and takes no more news. Calls may still run. */
void pv_crew_free(struct pv_crew *crew);

/*
 * Has a thread close the last three of PV_CREW_FDS descriptors, take the first three (pv_call_take),
 * run the call over the channel, and close what is left of them; -1 is none. Of its events those in
 * `wanted` (bits: 1 << enum pv_call_event) are told at once, those in `lazily` with the next one of
 * these or PV_CREW_LAZY_MS later; and its end, with number -errno if the descriptors could not be
 * taken. 0; or -errno: then nothing was begun.
 *
 * A call that follows a keeper (call_keeper.h) hears its first word before anything else but closing.
 * If that is for others to read, all that is told is PV_CALL_UNMET, with number 0 or errno: channel and
 * streams were not touched then, and are the caller's again, as is the call, which may be run anew.
 */
int pv_crew_run(struct pv_crew *crew, uint64_t number, struct pv_call *call,
                struct pv_channel *channel, const int *fds, int shuts, unsigned wanted,
                unsigned lazily);

/* The next news: 1, or 0 if there are none; then the descriptor tells of the next ones. */
int pv_crew_next(struct pv_crew *crew, struct pv_crew_news *news);

/* Waits until no thread has the call any more, and drops its news: it may be freed then. That is so
 * after PV_CALL_DONE and PV_CALL_UNMET as well. Streams of the latter are closed if nobody was told of
 * it. Before its crew is freed. */
void pv_crew_forget(struct pv_call *call);

#endif
