/*
 * The pump of a call: one end of a channel that carries a service's stdin, stdout, stderr and exit
 * status, in the frames of call_frames.h. It runs in a thread of its own, without Python, and
 * returns to it only for what Python has to know.
 *
 * Nothing here waits for a time but END: an other end that does not finish a call within
 * PV_CALL_END_MS costs the channel, and nothing else.
 */
#ifndef PEDOS_CALL_PUMP_H
#define PEDOS_CALL_PUMP_H

#include "call_frames.h"
#include "channel.h"

/* Both ends answer at once, or are stuck or paused. */
#define PV_CALL_END_MS 1000
/* Signals that are told within a second of the clock; those that are more are told later, each once.
 * A person does not send so many, and they cost half a percent of a processor. */
#define PV_CALL_SIGNALS_MAX 100u

/* What pv_call_run() returns. */
enum pv_call_event {
    PV_CALL_DONE,         /* the call is over: see the result */
    PV_CALL_NOTE_STARTED, /* caller: the service's side has taken up the call; service: its keeper
                           * says that it runs (call_keeper.h) */
    PV_CALL_NOTE_MAIN_EXITED,  /* caller; number: status */
    PV_CALL_NOTE_EXITED,       /* caller: EXIT came; there may be output yet to write */
    PV_CALL_NOTE_STDIN_ENDED,  /* service: it gets no more input; number: 0 if it wants none */
    PV_CALL_NOTE_STDOUT_ENDED, /* service: of its stdout; number: 0 if its caller wants no more */
    PV_CALL_NOTE_CALLER_GONE,  /* service: the calling program, or all of the other end */
    PV_CALL_NOTE_SIGNAL,       /* service; number: signal */
    PV_CALL_NOTE_DUE,          /* the time of pv_call_remind() has come */
    PV_CALL_UNMET, /* never; see call_crew.h */
    PV_CALL_NOTES
};

/* Why a channel can carry no other call. */
enum pv_call_why {
    PV_CALL_FINE,
    PV_CALL_PEER_CLOSED,
    PV_CALL_PEER_DIED,
    PV_CALL_PEER_BROKEN,  /* impossible indices */
    PV_CALL_PEER_FLOODED, /* too many wake-ups without news */
    PV_CALL_BREACH,       /* of the protocol of calls; see breach */
    PV_CALL_NO_END,       /* no END within PV_CALL_END_MS */
    PV_CALL_CANCELLED,
    PV_CALL_FAILED, /* here; see error */
};

struct pv_call_result {
    int kind; /* enum pv_call_kind; 0: there was no EXIT, and `why` is the reason */
    int why, error;
    uint32_t status, text_length;
    uint8_t text[PV_CALL_TEXT_MAX];
    const char *breach;
};

struct pv_call;

/* A call with a 16-byte id. NULL: no memory or no descriptor. */
struct pv_call *pv_call_new(int side, const uint8_t *id);

/* Takes over the three descriptors; see call_fd.h. 0, or -errno: then none is open any more. This
 * may wait, as pv_call_run() does. */
int pv_call_take(struct pv_call *call, int fd_in, int fd_out, int fd_err, int shuts);

/* Closes those that are still open, which may wait. */
void pv_call_drop(struct pv_call *call);

/* When it runs no more: pv_call_drop(), and orders are harmless then. */
void pv_call_release(struct pv_call *call);
/* Frees everything. */
void pv_call_free(struct pv_call *call);

/*
 * Runs until there is something to tell (enum pv_call_event), and is then called again, until
 * PV_CALL_DONE. The channel stays open if the result's why is PV_CALL_FINE, and is closed otherwise.
 * SIGPIPE must be ignored (Python does so).
 */
int pv_call_run(struct pv_call *call, struct pv_channel *channel, int *number);

/* Has PV_CALL_NOTE_DUE told after so many milliseconds, or a reminder that stands before. For the
 * thread that runs the call. */
void pv_call_remind(struct pv_call *call, int ms);

const struct pv_call_result *pv_call_result(const struct pv_call *call);

/*
 * What one other thread may call, while the call runs or before. Each takes effect once, and none
 * waits. Texts are at most PV_CALL_TEXT_MAX bytes.
 */
void pv_call_cancel(struct pv_call *call);
/* caller: the program is gone. service: the streams end, with a problem. */
void pv_call_abort(struct pv_call *call, const uint8_t *text, uint32_t length);
/* service: EXIT follows when its stdout and stderr have ended; with `now` they end at once. */
void pv_call_exit(struct pv_call *call, int kind, uint32_t status, const uint8_t *text,
                  uint32_t length, int now);
void pv_call_main_exited(struct pv_call *call, uint32_t status);
/* caller; those that were not sent yet are one. */
void pv_call_signal(struct pv_call *call, int number);

/* Bytes of a stream (enum pv_call_stream) so far. Any thread. */
uint64_t pv_call_bytes(const struct pv_call *call, int stream);

#endif
