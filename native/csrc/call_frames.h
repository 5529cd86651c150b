/*
 * The frames of a call's data channel: their forms, and what may follow what. The tables are those
 * of protocol/pedos_protocol/call_frames.py, where the theory stands; tests compare the two.
 *
 * Here is no I/O. A frame is checked in two steps: its header by itself (pv_call_header_read), then,
 * when what follows is there, the frame as the next one of its call (pv_call_step).
 */
#ifndef PEDOS_CALL_FRAMES_H
#define PEDOS_CALL_FRAMES_H

#include <stdint.h>

#define PV_CALL_HEADER 8u
#define PV_CALL_ID 16u
#define PV_CALL_DATA_MAX 131072u
#define PV_CALL_TEXT_MAX 200u
#define PV_CALL_WINDOW 524288u
#define PV_CALL_STDERR_WINDOW 65536u
#define PV_CALL_SIGNAL_MAX 64u
/* The longest frame that is not data: EXIT. */
#define PV_CALL_CONTROL_MAX (PV_CALL_HEADER + 8 + PV_CALL_TEXT_MAX)

enum pv_call_side { PV_CALL_CALLER, PV_CALL_SERVICE };

enum pv_call_type {
    PV_CALL_CALL = 1,
    PV_CALL_STDIN,
    PV_CALL_STDIN_EOF,
    PV_CALL_STDOUT_CLOSED,
    PV_CALL_STDOUT_CREDIT,
    PV_CALL_STDERR_CREDIT,
    PV_CALL_SIGNAL,
    PV_CALL_ABORT,
    PV_CALL_END,
    PV_CALL_STARTED = 17,
    PV_CALL_STDOUT,
    PV_CALL_STDOUT_EOF,
    PV_CALL_STDERR,
    PV_CALL_STDERR_EOF,
    PV_CALL_STDIN_CLOSED,
    PV_CALL_STDIN_CREDIT,
    PV_CALL_MAIN_EXITED,
    PV_CALL_EXIT,
    PV_CALL_TYPES
};

/* The kinds of EXIT. */
enum pv_call_kind {
    PV_CALL_EXITED = 1,
    PV_CALL_SIGNALLED,
    PV_CALL_PROBLEM,
    PV_CALL_REFUSED,
    PV_CALL_NOT_FOUND,
    PV_CALL_ABORTED,
};

enum pv_call_state { PV_CALL_START, PV_CALL_OPEN, PV_CALL_CLOSING, PV_CALL_ENDED };

enum pv_call_stream { PV_CALL_IN, PV_CALL_OUT, PV_CALL_ERR, PV_CALL_STREAMS };
enum pv_call_stream_state {
    PV_CALL_FLOWING,
    PV_CALL_FINISHED, /* EOF was sent */
    PV_CALL_UNWANTED, /* CLOSED was sent */
    PV_CALL_STREAM_OVER /* both were */
};
enum pv_call_stream_event {
    PV_CALL_IS_DATA,
    PV_CALL_IS_EOF,
    PV_CALL_IS_CLOSED,
    PV_CALL_IS_CREDIT,
    PV_CALL_IS_NONE
};

/* How far a call has come, as one end sees it. */
struct pv_call_progress {
    uint8_t id[PV_CALL_ID];
    uint8_t states[2]; /* enum pv_call_state of each side */
    uint8_t streams[PV_CALL_STREAMS];
    uint8_t main_exited;
    uint32_t credit[PV_CALL_STREAMS]; /* bytes that may still be sent */
};

void pv_call_begin(struct pv_call_progress *progress, const uint8_t *id);

/* Checks a header by itself. NULL and its type and length; or what is wrong. */
const char *pv_call_header_read(const uint8_t *header, int sender, int *type, uint32_t *length);

void pv_call_header_write(uint8_t *header, int type, uint32_t length);

/*
 * Takes the next frame, whose header was checked. rest is what follows it, NULL for data. Returns
 * NULL; or what is wrong, and then nothing has changed.
 */
const char *pv_call_step(struct pv_call_progress *progress, int sender, int type, uint32_t length,
                         const uint8_t *rest);

/* Which stream a type is about (-1: none), and what it is to it. */
int pv_call_stream_of(int type);
int pv_call_event_of(int type);

/* How many bytes of a stream may be under way. */
uint32_t pv_call_window(int stream);

uint32_t pv_call_number(const uint8_t *at);
void pv_call_put_number(uint8_t *at, uint32_t value);

/* The tables, for tests: the next state or -1. */
int pv_call_next(int sender, int state, int type);
int pv_call_stream_next(int state, int event);

#endif
