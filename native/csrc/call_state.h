/*
 * The state of a call at one end, for the parts of its pump: call_talk.c says what frames mean and
 * which one is due, call_keeper.c what a service's keeper says, and call_pump.c waits and obeys other
 * threads.
 */
#ifndef PEDOS_CALL_STATE_H
#define PEDOS_CALL_STATE_H

#include "call_crew.h"
#include "call_keeper.h"
#include "call_pump.h"
#include "call_streams.h"

/* What other threads have ordered. */
enum {
    PV_ORDER_CANCEL = 1,
    PV_ORDER_ABORT = 2,
    PV_ORDER_EXIT = 4,
    PV_ORDER_NOW = 8,
    PV_ORDER_MAIN_EXITED = 16,
};

struct pv_ending {
    uint32_t kind, status, length;
    uint8_t text[PV_CALL_TEXT_MAX];
};

/* What a call is for its crew (call_crew.c). */
struct pv_crewed {
    struct pv_crew *crew;
    struct pv_call *next; /* in the list of calls with news */
    uint64_t number;
    struct pv_channel *channel;
    int fds[PV_CREW_FDS], shuts;
    unsigned wanted, lazily; /* bits: 1 << enum pv_call_event */
    unsigned later;          /* of `lazily`, those that happened and are not told */
    bool is_running, is_listed;
    uint32_t news;         /* bits, as above */
    uint32_t by_number;    /* bits, as above: ends of streams that were told with the number 1 */
    int status, error;
    uint64_t signals;      /* bits: 1 << (number - 1) */
};

struct pv_call {
    struct pv_call_result result;
    struct pv_call_progress progress;
    struct pv_channel *channel;
    struct pv_inward inward[2];   /* caller: stdout, stderr. service: stdin */
    struct pv_outward outward[2]; /* caller: stdin. service: stdout, stderr */
    struct pv_head head;
    uint8_t side, peer;
    uint8_t inwards, outwards;
    uint8_t has_streams; /* service: any descriptor was given */
    uint8_t is_unbegun;  /* service: it was ended before it was known to run */
    uint8_t is_lost;     /* nothing can be read or written in the channel any more */
    uint8_t is_mute;     /* nothing can be written */
    uint8_t is_leaving;  /* caller: the program is gone; ABORT */
    uint8_t is_cut;      /* caller: output was lost, whatever the service says of itself */
    uint8_t is_ending;   /* service: `ending` is decided */
    uint8_t has_main_exited; /* service: with main_status */
    uint8_t turn;        /* of the outwards: which is first */
    uint8_t has_said;    /* what the other end has to be woken for */
    uint32_t obeyed;     /* orders that were carried out */
    struct pv_keeper keeper;
    struct pv_ending ending;
    struct pv_ending failed; /* caller: why it leaves by itself; of no kind: it does not */
    /* waiting */
    uint32_t room_wanted; /* in the ring; 0: nothing waits for room */
    int64_t heard;        /* what pv_ring_ready() said when there was nothing left to do */
    uint8_t heard_final;
    int64_t end_by_ms;    /* of CLOCK_MONOTONIC; 0: no END is awaited */
    int64_t remind_at_ms; /* as above; 0: never */
    /* to tell */
    uint32_t notes, noted; /* bits: 1 << enum pv_call_event; each but signals is noted once */
    uint32_t main_status;
    uint64_t signals_in;   /* bits: 1 << (number - 1) */
    uint32_t signals_counted;
    int64_t signals_second;
    /* from and for other threads */
    int wake_fd;           /* eventfd that wakes the loop */
    uint32_t orders;       /* bits; set once what belongs to them is there */
    uint64_t signals_out;  /* bits: 1 << (number - 1) */
    uint32_t ordered_main_status;
    struct pv_ending ordered_exit, ordered_abort;
    uint64_t bytes[PV_CALL_STREAMS];
    struct pv_crewed crewed;
};

int64_t pv_call_now_ms(int clock);

void pv_call_note(struct pv_call *call, int event);

/* All streams end here and now. */
void pv_call_drop_streams(struct pv_call *call);

/* The channel is of no use any more. A caller still writes what it has. */
void pv_call_lose(struct pv_call *call, int why, int error);

/* The other end broke the protocol. */
void pv_call_breach(struct pv_call *call, const char *what);

/* The service's end is decided, if it was not yet. */
void pv_call_decide(struct pv_call *call, const struct pv_ending *ending);

/* Service: its main process has exited. */
void pv_call_main_has_exited(struct pv_call *call, uint32_t status);

/* Takes what the wake-up was. */
void pv_call_woken(const struct pv_call *call);

/* The caller ends the call by ABORT, unless the service has ended it. */
void pv_call_leave(struct pv_call *call);

/* Ends the call if one of its streams cannot be written; true if so. */
bool pv_call_heed(struct pv_call *call, struct pv_inward *inward);

/* From now on END has to come soon. */
void pv_call_await_end(struct pv_call *call);

/* Whether frames of this call can still come. What follows a caller's END is another call's. */
bool pv_call_is_listening(const struct pv_call *call);

/* One step of reading from the ring; true if something changed. */
bool pv_call_receive(struct pv_call *call);

/* Sends one frame that is not data; true if one was due and had room. */
bool pv_call_speak(struct pv_call *call);

/* Reads some data of one of our streams into the ring; true if something changed. */
bool pv_call_fill(struct pv_call *call, struct pv_outward *outward);

#endif
