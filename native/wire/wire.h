/*
 * Frames, the MessagePack in them, and their events, for Python: this code decides what a peer may
 * send, and builds Python objects from it in the same pass. codec.py describes the format, events.py
 * the events.
 *
 * Both directions have the same bounds, so every value that can be sent can be read. What an event
 * may be is checked when it is made, and not again when it is written: events do not change.
 */
#ifndef PEDOS_WIRE_H
#define PEDOS_WIRE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

/* Bytes of the length in front of a payload. */
#define HEADER_SIZE 4

/*
 * Bytes of payload. A page of 128 devices fits; with frames alone a hundred hostile VMs can make
 * dom0 hold no more than some 7 MiB.
 */
#define FRAME_MAX 65536

/*
 * Lists and maps within each other, the outermost array included. The deepest message
 * (answer, result, devices, device, attachments, attachment, options) has 7.
 */
#define DEPTH_MAX 8

/*
 * Entries of one list or one map. Room for them is allocated before the first one is read, so
 * without this cap 64 KiB of headers could cost 512 KiB for a moment at each depth.
 */
#define ITEMS_MAX 1024

/*
 * Lists and maps in one frame, the outermost array included. They cost a reader most. The
 * legitimate frame with the most of them (a page of devices that are assigned to hundreds of VMs
 * each) has some 5,600.
 */
#define CONTAINERS_MAX 6144

/*
 * Milliseconds, a day: what waits until something happens, as a watch does, must not wake up a
 * program in which nothing does. Whatever else is asked for has far shorter time-outs.
 */
#define DEADLINE_MS_MAX 86400000

/*
 * Requests without an answer, each way. Enough that no correct program waits for it, few enough that
 * what a VM can make dom0 remember stays small.
 */
#define PENDING_MAX 128

/* A call's id is a u32. */
#define ID_MAX 0xffffffffll

/* Bytes of a datagram between a program that calls a service and its agent. A `Call` with all texts
 * at their bounds has some 900. */
#define DATAGRAM_MAX 4096

/* The first item of a frame, as in MessagePack-RPC. */
enum { REQUEST, RESPONSE, NOTICE };

/* The second item of the first frame of each side. No notice has it as its method. */
#define HELLO "hello"

/* The states of a side that the table of connection.py does not lead to. */
#define START "START"
#define ERROR "ERROR"

/* Why an event may not be said: see wire_take_turn(). */
enum { OUT_OF_TURN = 1, ID_IN_USE, TOO_MANY_PENDING, NO_REQUEST };

/* The error of a value, in either direction. */
#define WIRE_TOO_DEEP "it is more than 8 lists and maps deep"
#define WIRE_TOO_LONG "a list or map has more than 1024 entries"
#define WIRE_TOO_MANY "it has more than 6144 lists and maps"
#define WIRE_TOO_LARGE "it has more than 65536 bytes"
#define WIRE_KEY_NO_TEXT "a key of a map is not text"
#define WIRE_NOT_FINITE "a number is not finite"
_Static_assert(DEPTH_MAX == 8 && ITEMS_MAX == 1024 && CONTAINERS_MAX == 6144 && FRAME_MAX == 65536,
               "as said above");

/* pedos_protocol.errors: ours for a value that we would send, theirs for one
 * that they have sent. */
extern PyObject *wire_local_error, *wire_remote_error;

/* read.c. The list that a payload is; NULL with an error. */
PyObject *wire_read_payload(const uint8_t *bytes, size_t size);

/*
 * The list in the frame that begins at *at, which is then behind it. NULL without an error if the
 * frame is not whole, NULL with one if it cannot be read or no frame may have its size.
 */
PyObject *wire_read_frame(const uint8_t *bytes, Py_ssize_t size, Py_ssize_t *at);

/* write.c. A frame in the making; its bytes are not set to zero, as only what is written is sent. */
struct wire_writer {
    size_t size; /* of the payload so far */
    unsigned containers;
    uint8_t frame[HEADER_SIZE + FRAME_MAX];
};

void wire_begin(struct wire_writer *writer);

/* These return 0, or -1 with an error. `depth` lists and maps enclose the value. */
int wire_write_value(struct wire_writer *writer, PyObject *value, int depth);
int wire_write_text(struct wire_writer *writer, PyObject *text);
int wire_write_list_header(struct wire_writer *writer, Py_ssize_t count, int depth);
int wire_write_map_header(struct wire_writer *writer, Py_ssize_t count, int depth);
int wire_write_entries(struct wire_writer *writer, PyObject *map, int depth);

/* The whole frame; NULL with an error. */
PyObject *wire_finish(struct wire_writer *writer);

/* Raises that there is no way to say this type: `format` has a place for its name. Returns -1. */
int wire_wrong_type(const char *format, PyObject *value);

/* module.c. Makes interned texts; returns 0, or -1 with an error. */
struct wire_name {
    PyObject **text;
    const char *characters;
};
int wire_make_names(const struct wire_name *names, size_t count);

/*
 * values.c. A request, an answer or a notice: as many values as it has attributes, in the order of
 * these names. They were checked, and do not change.
 */
struct wire_event {
    PyObject_HEAD
    PyObject *values[];
};
enum { REQUEST_ID, REQUEST_METHOD, REQUEST_PARAMS, REQUEST_DEADLINE };
enum { ANSWER_ID, ANSWER_RESULT };
enum { NOTICE_METHOD, NOTICE_PARAMS };

/* Names on the wire: of a request's parameter, and of the first frame. */
extern PyObject *wire_deadline_name, *wire_hello_name;

extern PyObject *wire_request_class, *wire_answer_class, *wire_notice_class;
extern PyObject *wire_error_answer_class, *wire_closed_class;

/* Whether the classes are there; 0 with an error. */
int wire_is_introduced(void);

/* An event with these values; NULL with an error if it may not have them. */
PyObject *wire_make_request(PyObject *const *values);
PyObject *wire_make_answer(PyObject *const *values);
PyObject *wire_make_notice(PyObject *const *values);

/* The number that an integer is, or -1 if it is negative, too large or no integer; True is none. */
long long wire_natural(PyObject *value);

/* events.c. The event that a message says, or the message itself if it is none of the three; NULL
 * with an error. */
PyObject *wire_event_of(PyObject *message);

/* The frame that says one of the three, None for another event, NULL with an error. */
PyObject *wire_frame_of(PyObject *event);

/* Functions of the module. */
PyObject *wire_make_classes(PyObject *module, PyObject *arguments);
PyObject *wire_introduce(PyObject *module, PyObject *arguments);
PyObject *wire_check_id(PyObject *module, PyObject *id);

/* turn.c. Ids of requests without an answer, in any order: at most PENDING_MAX. */
struct wire_ids {
    uint32_t *at; /* NULL if there is none */
    int count;
};

/* What one side has said so far, and so what it may say next: it owns its state, a key of the table
 * of connection.py. */
struct wire_side {
    PyObject *state;
    struct wire_ids in_flight; /* its own requests */
};

/*
 * Moves `side` on by `event`, which may be an answer to the `other`. Returns 0; the rule that forbids
 * it, or -1 with an error, and then nothing has changed.
 */
int wire_take_turn(PyObject *table, struct wire_side *side, struct wire_side *other, PyObject *event);

void wire_enter(struct wire_side *side, PyObject *state);

/* Whether the integer is one of them; -1 with an error if it is none that fits 64 bits. */
int wire_has_id(const struct wire_ids *ids, PyObject *id);
void wire_forget_ids(struct wire_ids *ids);

/* forms.c. Functions of the module. */
PyObject *wire_take_list(PyObject *module, PyObject *arguments);
PyObject *wire_take_map(PyObject *module, PyObject *arguments);

/* packets.c. Functions of the module. */
PyObject *wire_read_packet(PyObject *module, PyObject *arguments);
PyObject *wire_write_packet(PyObject *module, PyObject *arguments);

/* These make what each file needs; they return 0, or -1 with an error. */
int wire_values_ready(void);
int wire_turn_ready(void);
int wire_connection_ready(PyObject *module);
int wire_forms_ready(PyObject *module);

#endif
