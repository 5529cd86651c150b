/* call_frames.h describes this; protocol/pedos_protocol/call_frames.py has the same tables. */
#include "call_frames.h"

#include <stddef.h>
#include <string.h>

#define BY(side) (1u << (side))
#define BY_BOTH (BY(PV_CALL_CALLER) | BY(PV_CALL_SERVICE))

struct form {
    uint8_t senders; /* bits; 0: there is no such frame */
    uint32_t least, most;
};

static const struct form FORMS[PV_CALL_TYPES] = {
    [PV_CALL_CALL] = {BY(PV_CALL_CALLER), PV_CALL_ID, PV_CALL_ID},
    [PV_CALL_STDIN] = {BY(PV_CALL_CALLER), 1, PV_CALL_DATA_MAX},
    [PV_CALL_STDIN_EOF] = {BY(PV_CALL_CALLER), 0, 0},
    [PV_CALL_STDOUT_CLOSED] = {BY(PV_CALL_CALLER), 0, 0},
    [PV_CALL_STDOUT_CREDIT] = {BY(PV_CALL_CALLER), 4, 4},
    [PV_CALL_STDERR_CREDIT] = {BY(PV_CALL_CALLER), 4, 4},
    [PV_CALL_SIGNAL] = {BY(PV_CALL_CALLER), 4, 4},
    [PV_CALL_ABORT] = {BY(PV_CALL_CALLER), 0, 0},
    [PV_CALL_END] = {BY_BOTH, 0, 0},
    [PV_CALL_STARTED] = {BY(PV_CALL_SERVICE), PV_CALL_ID, PV_CALL_ID},
    [PV_CALL_STDOUT] = {BY(PV_CALL_SERVICE), 1, PV_CALL_DATA_MAX},
    [PV_CALL_STDOUT_EOF] = {BY(PV_CALL_SERVICE), 0, 0},
    [PV_CALL_STDERR] = {BY(PV_CALL_SERVICE), 1, PV_CALL_DATA_MAX},
    [PV_CALL_STDERR_EOF] = {BY(PV_CALL_SERVICE), 0, 0},
    [PV_CALL_STDIN_CLOSED] = {BY(PV_CALL_SERVICE), 0, 0},
    [PV_CALL_STDIN_CREDIT] = {BY(PV_CALL_SERVICE), 4, 4},
    [PV_CALL_MAIN_EXITED] = {BY(PV_CALL_SERVICE), 4, 4},
    [PV_CALL_EXIT] = {BY(PV_CALL_SERVICE), 8, 8 + PV_CALL_TEXT_MAX},
};

/* A state plus 1; 0: not allowed. */
static const uint8_t NEXT[2][4][PV_CALL_TYPES] = {
    [PV_CALL_CALLER] =
        {
            [PV_CALL_START] = {[PV_CALL_CALL] = PV_CALL_OPEN + 1},
            [PV_CALL_OPEN] =
                {
                    [PV_CALL_STDIN] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDIN_EOF] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDOUT_CLOSED] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDOUT_CREDIT] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDERR_CREDIT] = PV_CALL_OPEN + 1,
                    [PV_CALL_SIGNAL] = PV_CALL_OPEN + 1,
                    [PV_CALL_ABORT] = PV_CALL_CLOSING + 1,
                    [PV_CALL_END] = PV_CALL_ENDED + 1,
                },
            [PV_CALL_CLOSING] = {[PV_CALL_END] = PV_CALL_ENDED + 1},
        },
    [PV_CALL_SERVICE] =
        {
            [PV_CALL_START] =
                {
                    [PV_CALL_STARTED] = PV_CALL_OPEN + 1,
                    [PV_CALL_EXIT] = PV_CALL_CLOSING + 1,
                },
            [PV_CALL_OPEN] =
                {
                    [PV_CALL_STDOUT] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDOUT_EOF] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDERR] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDERR_EOF] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDIN_CLOSED] = PV_CALL_OPEN + 1,
                    [PV_CALL_STDIN_CREDIT] = PV_CALL_OPEN + 1,
                    [PV_CALL_MAIN_EXITED] = PV_CALL_OPEN + 1,
                    [PV_CALL_EXIT] = PV_CALL_CLOSING + 1,
                },
            [PV_CALL_CLOSING] = {[PV_CALL_END] = PV_CALL_ENDED + 1},
        },
};

static const uint8_t STREAM_NEXT[4][PV_CALL_IS_NONE] = {
    [PV_CALL_FLOWING] =
        {
            [PV_CALL_IS_DATA] = PV_CALL_FLOWING + 1,
            [PV_CALL_IS_CREDIT] = PV_CALL_FLOWING + 1,
            [PV_CALL_IS_EOF] = PV_CALL_FINISHED + 1,
            [PV_CALL_IS_CLOSED] = PV_CALL_UNWANTED + 1,
        },
    [PV_CALL_FINISHED] =
        {
            [PV_CALL_IS_CREDIT] = PV_CALL_FINISHED + 1,
            [PV_CALL_IS_CLOSED] = PV_CALL_STREAM_OVER + 1,
        },
    [PV_CALL_UNWANTED] =
        {
            [PV_CALL_IS_DATA] = PV_CALL_UNWANTED + 1,
            [PV_CALL_IS_EOF] = PV_CALL_STREAM_OVER + 1,
        },
};

static const struct {
    uint8_t stream, event;
} MEANS[PV_CALL_TYPES] = {
    [PV_CALL_CALL] = {PV_CALL_STREAMS, PV_CALL_IS_NONE},
    [PV_CALL_STDIN] = {PV_CALL_IN, PV_CALL_IS_DATA},
    [PV_CALL_STDIN_EOF] = {PV_CALL_IN, PV_CALL_IS_EOF},
    [PV_CALL_STDIN_CLOSED] = {PV_CALL_IN, PV_CALL_IS_CLOSED},
    [PV_CALL_STDIN_CREDIT] = {PV_CALL_IN, PV_CALL_IS_CREDIT},
    [PV_CALL_STDOUT] = {PV_CALL_OUT, PV_CALL_IS_DATA},
    [PV_CALL_STDOUT_EOF] = {PV_CALL_OUT, PV_CALL_IS_EOF},
    [PV_CALL_STDOUT_CLOSED] = {PV_CALL_OUT, PV_CALL_IS_CLOSED},
    [PV_CALL_STDOUT_CREDIT] = {PV_CALL_OUT, PV_CALL_IS_CREDIT},
    [PV_CALL_STDERR] = {PV_CALL_ERR, PV_CALL_IS_DATA},
    [PV_CALL_STDERR_EOF] = {PV_CALL_ERR, PV_CALL_IS_EOF},
    [PV_CALL_STDERR_CREDIT] = {PV_CALL_ERR, PV_CALL_IS_CREDIT},
    [PV_CALL_SIGNAL] = {PV_CALL_STREAMS, PV_CALL_IS_NONE},
    [PV_CALL_ABORT] = {PV_CALL_STREAMS, PV_CALL_IS_NONE},
    [PV_CALL_END] = {PV_CALL_STREAMS, PV_CALL_IS_NONE},
    [PV_CALL_STARTED] = {PV_CALL_STREAMS, PV_CALL_IS_NONE},
    [PV_CALL_MAIN_EXITED] = {PV_CALL_STREAMS, PV_CALL_IS_NONE},
    [PV_CALL_EXIT] = {PV_CALL_STREAMS, PV_CALL_IS_NONE},
};

static const struct {
    uint32_t least, most;
} STATUSES[] = {
    [PV_CALL_EXITED] = {0, 255},
    [PV_CALL_SIGNALLED] = {1, PV_CALL_SIGNAL_MAX},
    [PV_CALL_PROBLEM] = {125, 125},
    [PV_CALL_REFUSED] = {126, 126},
    [PV_CALL_NOT_FOUND] = {127, 127},
    [PV_CALL_ABORTED] = {125, 125},
};

static const uint32_t WINDOWS[PV_CALL_STREAMS] = {
    [PV_CALL_IN] = PV_CALL_WINDOW,
    [PV_CALL_OUT] = PV_CALL_WINDOW,
    [PV_CALL_ERR] = PV_CALL_STDERR_WINDOW,
};

uint32_t pv_call_number(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

void pv_call_put_number(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

int pv_call_next(int sender, int state, int type)
{
    return NEXT[sender][state][type] - 1;
}

int pv_call_stream_next(int state, int event)
{
    return STREAM_NEXT[state][event] - 1;
}

int pv_call_stream_of(int type)
{
    return MEANS[type].event == PV_CALL_IS_NONE ? -1 : MEANS[type].stream;
}

int pv_call_event_of(int type)
{
    return MEANS[type].event;
}

uint32_t pv_call_window(int stream)
{
    return WINDOWS[stream];
}

void pv_call_begin(struct pv_call_progress *progress, const uint8_t *id)
{
    *progress = (struct pv_call_progress){.states = {PV_CALL_START, PV_CALL_START}};
    memcpy(progress->id, id, PV_CALL_ID);
    memcpy(progress->credit, WINDOWS, sizeof WINDOWS);
}

const char *pv_call_header_read(const uint8_t *header, int sender, int *type, uint32_t *length)
{
    const struct form *form = header[0] < PV_CALL_TYPES ? &FORMS[header[0]] : NULL;

    *type = header[0];
    *length = pv_call_number(header + 4);
    if (!form || !form->senders)
        return "an unknown frame";
    if (header[1] || header[2] || header[3])
        return "a header with reserved bits";
    if (!(form->senders & BY(sender)))
        return "a frame of the wrong side";
    if (*length < form->least || *length > form->most)
        return "a frame with an impossible length";
    return NULL;
}

void pv_call_header_write(uint8_t *header, int type, uint32_t length)
{
    memset(header, 0, 4);
    header[0] = (uint8_t)type;
    pv_call_put_number(header + 4, length);
}

static const char *wrong_in_stream(const struct pv_call_progress *progress, int type,
                                   uint32_t length, const uint8_t *rest)
{
    int stream = MEANS[type].stream, event = MEANS[type].event;
    uint32_t credit = progress->credit[stream];

    if (pv_call_stream_next(progress->streams[stream], event) < 0)
        return "a stream goes on after its end";
    if (event == PV_CALL_IS_DATA && length > credit)
        return "more of a stream than there is credit for";
    if (event == PV_CALL_IS_CREDIT &&
        (!pv_call_number(rest) || pv_call_number(rest) > WINDOWS[stream] - credit))
        return "credit for what was never sent";
    return NULL;
}

static int is_finished(const struct pv_call_progress *progress, int stream)
{
    return progress->streams[stream] == PV_CALL_FINISHED ||
           progress->streams[stream] == PV_CALL_STREAM_OVER;
}

static const char *wrong_exit(const struct pv_call_progress *progress, const uint8_t *rest)
{
    uint32_t kind = pv_call_number(rest), status = pv_call_number(rest + 4);

    if (kind < PV_CALL_EXITED || kind > PV_CALL_ABORTED || status < STATUSES[kind].least ||
        status > STATUSES[kind].most)
        return "an impossible exit";
    if (progress->states[PV_CALL_SERVICE] == PV_CALL_START)
        return NULL;
    if (!is_finished(progress, PV_CALL_OUT) || !is_finished(progress, PV_CALL_ERR) ||
        progress->streams[PV_CALL_IN] == PV_CALL_FLOWING)
        return "an exit before the streams' end";
    return NULL;
}

static const char *wrong_end(const struct pv_call_progress *progress)
{
    if (progress->states[PV_CALL_SERVICE] < PV_CALL_CLOSING || !is_finished(progress, PV_CALL_IN))
        return "an end before the exit";
    return NULL;
}

static const char *wrong(const struct pv_call_progress *progress, int sender, int type,
                         uint32_t length, const uint8_t *rest)
{
    if (pv_call_next(sender, progress->states[sender], type) < 0)
        return "a frame out of turn";
    if (MEANS[type].event != PV_CALL_IS_NONE)
        return wrong_in_stream(progress, type, length, rest);
    if ((type == PV_CALL_CALL || type == PV_CALL_STARTED) &&
        memcmp(rest, progress->id, PV_CALL_ID) != 0)
        return "another call's id";
    if (sender == PV_CALL_SERVICE && progress->states[PV_CALL_CALLER] == PV_CALL_START)
        return "an answer to no call";
    if (type == PV_CALL_SIGNAL &&
        (!pv_call_number(rest) || pv_call_number(rest) > PV_CALL_SIGNAL_MAX))
        return "an impossible signal";
    if (type == PV_CALL_MAIN_EXITED && (progress->main_exited || pv_call_number(rest) > 255))
        return "an impossible exit";
    if (type == PV_CALL_EXIT)
        return wrong_exit(progress, rest);
    if (sender == PV_CALL_CALLER && type == PV_CALL_END &&
        progress->states[PV_CALL_CALLER] == PV_CALL_OPEN)
        return wrong_end(progress);
    return NULL;
}

const char *pv_call_step(struct pv_call_progress *progress, int sender, int type, uint32_t length,
                         const uint8_t *rest)
{
    const char *why = wrong(progress, sender, type, length, rest);
    int stream = MEANS[type].stream, event = MEANS[type].event;

    if (why)
        return why;
    progress->states[sender] = (uint8_t)pv_call_next(sender, progress->states[sender], type);
    if (type == PV_CALL_MAIN_EXITED)
        progress->main_exited = 1;
    if (event == PV_CALL_IS_NONE)
        return NULL;
    progress->streams[stream] =
        (uint8_t)pv_call_stream_next(progress->streams[stream], event);
    if (event == PV_CALL_IS_DATA)
        progress->credit[stream] -= length;
    else if (event == PV_CALL_IS_CREDIT)
        progress->credit[stream] += pv_call_number(rest);
    return NULL;
}
