/*
 * One end of a connection: the part of connection.py's class that each event goes through. The type
 * `Machine` has both sides' turns and what has arrived; `Events` takes events out of it one by one.
 * What is rare is left to methods of the class in Python: hellos, errors, and their words.
 */
#include "wire.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

enum { OURS, THEIRS };

struct machine {
    PyObject_HEAD
    PyObject *table;
    struct wire_side sides[2]; /* OURS, THEIRS */
    /*
     * Bytes that have arrived and were not taken yet start at `taken`. They are the caller's own
     * object as long as it holds whole frames, and a bytearray that grows once a frame arrives in
     * pieces. NULL: nothing has.
     */
    PyObject *buffer;
    Py_ssize_t taken;
    PyObject *failure; /* the words of the error that their side has made, or NULL */
    char has_ended;    /* the stream */
};

struct events {
    PyObject_HEAD
    struct machine *machine; /* NULL: none is left */
};

static PyTypeObject *events_type;

/* Names of methods and states. */
static PyObject *frame_name, *parse_name, *heard_name, *refuse_name, *start_name, *error_name;

/* Says that `side` says `event`. Returns 0, or -1 with an error. */
static int say(struct machine *machine, int side, PyObject *event)
{
    int rule = wire_take_turn(machine->table, &machine->sides[side], &machine->sides[!side], event);
    PyObject *is_ours = side == OURS ? Py_True : Py_False, *number, *refused = NULL;

    if (rule <= 0)
        return rule;
    if ((number = PyLong_FromLong(rule)) != NULL)
        refused = PyObject_CallMethodObjArgs((PyObject *)machine, refuse_name, is_ours, number,
                                             event, NULL);
    if (refused != NULL)
        PyErr_SetString(PyExc_SystemError, "_refuse() did not raise");
    Py_XDECREF(refused);
    Py_XDECREF(number);
    return -1;
}

static PyObject *send(PyObject *self, PyObject *event)
{
    PyObject *frame = wire_frame_of(event);

    if (frame == Py_None) {
        Py_DECREF(frame);
        frame = PyObject_CallMethodObjArgs(self, frame_name, event, NULL);
    }
    if (frame != NULL && say((struct machine *)self, OURS, event) < 0)
        Py_CLEAR(frame);
    return frame;
}

/* --- what has arrived --- */

static const char *bytes_of(PyObject *buffer)
{
    return PyBytes_CheckExact(buffer) ? PyBytes_AsString(buffer) : PyByteArray_AsString(buffer);
}

static Py_ssize_t left(const struct machine *machine)
{
    return machine->buffer == NULL ? 0 : PyObject_Size(machine->buffer) - machine->taken;
}

static void forget(struct machine *machine)
{
    Py_CLEAR(machine->buffer);
    machine->taken = 0;
}

/* Puts `more` behind the start of a frame that is there. Returns 0, or -1 with an error. */
static int append(struct machine *machine, const Py_buffer *more)
{
    Py_ssize_t before = left(machine);
    PyObject *grown = machine->buffer;
    char *bytes;

    if (PyBytes_CheckExact(grown)) {
        grown = PyByteArray_FromStringAndSize(bytes_of(grown) + machine->taken, before);
        if (grown == NULL)
            return -1;
        Py_DECREF(machine->buffer);
        machine->buffer = grown;
    } else {
        bytes = PyByteArray_AsString(grown);
        memmove(bytes, bytes + machine->taken, (size_t)before);
    }
    machine->taken = 0;
    if (PyByteArray_Resize(grown, before + more->len) < 0)
        return -1;
    memcpy(PyByteArray_AsString(grown) + before, more->buf, (size_t)more->len);
    return 0;
}

/* Keeps `data`, which `view` shows. Returns 0, or -1 with an error. */
static int keep(struct machine *machine, PyObject *data, const Py_buffer *view)
{
    if (view->len == 0) {
        machine->has_ended = 1;
        return 0;
    }
    if (left(machine) > 0)
        return append(machine, view);
    forget(machine);
    if (PyBytes_CheckExact(data)) {
        Py_INCREF(data);
        machine->buffer = data;
    } else {
        machine->buffer = PyBytes_FromStringAndSize(view->buf, view->len);
    }
    return machine->buffer == NULL ? -1 : 0;
}

static PyObject *events(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    struct events *made = (struct events *)PyType_GenericAlloc(events_type, 0);

    if (made != NULL) {
        Py_INCREF(self);
        made->machine = (struct machine *)self;
    }
    return (PyObject *)made;
}

static PyObject *receive_data(PyObject *self, PyObject *data)
{
    struct machine *machine = (struct machine *)self;
    Py_buffer view;
    int kept;

    if (machine->has_ended) {
        PyErr_SetString(wire_local_error, "data came after the end of the stream");
        return NULL;
    }
    if (left(machine) >= HEADER_SIZE + FRAME_MAX) {
        PyErr_SetString(wire_local_error,
                        "events that came have to be taken out before more data");
        return NULL;
    }
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    kept = keep(machine, data, &view);
    PyBuffer_Release(&view);
    return kept < 0 ? NULL : events(self, NULL);
}

/* --- events --- */

/* The list in the next whole frame; NULL without an error if there is none. */
static PyObject *take_message(struct machine *machine)
{
    PyObject *message;
    Py_buffer view;

    if (machine->buffer == NULL || PyObject_GetBuffer(machine->buffer, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    message = wire_read_frame(view.buf, view.len, &machine->taken);
    PyBuffer_Release(&view);
    return message;
}

/* The event of the next whole frame; NULL without an error if there is none. */
static PyObject *take_event(struct machine *machine)
{
    PyObject *message = take_message(machine), *event, *done = NULL;
    int is_rare;

    if (message == NULL)
        return NULL;
    event = wire_event_of(message);
    is_rare = event == message;
    if (is_rare) {
        Py_DECREF(event);
        event = PyObject_CallMethodObjArgs((PyObject *)machine, parse_name, message, NULL);
    }
    Py_DECREF(message);
    if (event != NULL && say(machine, THEIRS, event) < 0)
        Py_CLEAR(event);
    if (event == NULL || !is_rare)
        return event;
    done = PyObject_CallMethodObjArgs((PyObject *)machine, heard_name, event, NULL);
    if (done == NULL)
        Py_CLEAR(event);
    Py_XDECREF(done);
    return event;
}

/* After the last whole frame: Closed if the stream has ended, or NULL, maybe with an error. */
static PyObject *take_end(struct machine *machine)
{
    PyObject *event = NULL;

    if (left(machine) == 0)
        forget(machine); /* an idle connection keeps nothing */
    if (!machine->has_ended)
        return NULL;
    if (machine->buffer != NULL)
        PyErr_SetString(wire_remote_error, "the stream ended within a frame");
    else
        event = PyObject_CallNoArgs(wire_closed_class);
    if (event != NULL && say(machine, THEIRS, event) < 0)
        Py_CLEAR(event);
    if (event != NULL)
        wire_enter(&machine->sides[OURS], machine->sides[THEIRS].state); /* their end is ours */
    return event;
}

/* Makes of one of the two protocol errors, which is set, the failure of their side. Local: an event
 * that cannot be made. */
static void fail(struct machine *machine)
{
    PyObject *type, *error, *traceback;

    if (!PyErr_ExceptionMatches(wire_remote_error) && !PyErr_ExceptionMatches(wire_local_error))
        return;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    machine->failure = PyObject_Str(error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    wire_enter(&machine->sides[THEIRS], error_name);
    forget(machine);
    if (machine->failure != NULL)
        PyErr_SetObject(wire_remote_error, machine->failure);
}

/* Events.__next__ */
static PyObject *next_event(PyObject *self)
{
    struct events *taker = (struct events *)self;
    struct machine *machine = taker->machine;
    PyObject *event;
    int is_last;

    if (machine == NULL)
        return NULL;
    if (machine->failure != NULL) {
        PyErr_SetObject(wire_remote_error, machine->failure);
        return NULL;
    }
    event = take_event(machine);
    is_last = event == NULL;
    if (event == NULL && !PyErr_Occurred())
        event = take_end(machine);
    if (event == NULL && PyErr_Occurred())
        fail(machine);
    if (is_last)
        Py_CLEAR(taker->machine);
    return event;
}

/* --- types --- */

static PyObject *has_more(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(left((struct machine *)self) > 0);
}

static PyObject *is_in_flight(PyObject *self, PyObject *id)
{
    int is_in = wire_has_id(&((struct machine *)self)->sides[OURS].in_flight, id);

    return is_in < 0 ? NULL : PyBool_FromLong(is_in);
}

static PyObject *new_machine(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(named))
{
    struct machine *machine;
    PyObject *table;

    if (!PyArg_ParseTuple(arguments, "O!", &PyDict_Type, &table) || !wire_is_introduced())
        return NULL;
    machine = (struct machine *)PyType_GenericAlloc(type, 0); /* all zero */
    if (machine == NULL)
        return NULL;
    Py_INCREF(table);
    machine->table = table;
    wire_enter(&machine->sides[OURS], start_name);
    wire_enter(&machine->sides[THEIRS], start_name);
    return (PyObject *)machine;
}

static void free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static void free_machine(PyObject *self)
{
    struct machine *machine = (struct machine *)self;

    for (int side = OURS; side <= THEIRS; side++) {
        Py_CLEAR(machine->sides[side].state);
        wire_forget_ids(&machine->sides[side].in_flight);
    }
    Py_CLEAR(machine->table);
    Py_CLEAR(machine->buffer);
    Py_CLEAR(machine->failure);
    free_object(self);
}

static void free_events(PyObject *self)
{
    Py_CLEAR(((struct events *)self)->machine);
    free_object(self);
}

static PyMethodDef machine_methods[] = {
    {"send", send, METH_O, NULL},
    {"receive_data", receive_data, METH_O, NULL},
    {"_events", events, METH_NOARGS, NULL},
    {"is_in_flight", is_in_flight, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef machine_getters[] = {
    {"has_more", has_more, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define OF_SIDE(side, member) (offsetof(struct machine, sides[side]) + offsetof(struct wire_side, member))

static PyMemberDef machine_members[] = {
    {"our_state", T_OBJECT, OF_SIDE(OURS, state), READONLY, NULL},
    {"their_state", T_OBJECT, OF_SIDE(THEIRS, state), READONLY, NULL},
    {"ours_in_flight", T_INT, OF_SIDE(OURS, in_flight.count), READONLY, NULL},
    {"theirs_in_flight", T_INT, OF_SIDE(THEIRS, in_flight.count), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot machine_slots[] = {
    {Py_tp_new, new_machine},         {Py_tp_dealloc, free_machine},
    {Py_tp_methods, machine_methods}, {Py_tp_members, machine_members},
    {Py_tp_getset, machine_getters},  {0, NULL},
};

static PyType_Slot events_slots[] = {
    {Py_tp_dealloc, free_events},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, next_event},
    {0, NULL},
};

/* Neither is part of a cycle: they hold texts, bytes and the table. */
static PyType_Spec machine_spec = {"pedos_protocol._wire.Machine", sizeof(struct machine), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, machine_slots};
static PyType_Spec events_spec = {"pedos_protocol._wire.Events", sizeof(struct events), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  events_slots};

int wire_connection_ready(PyObject *module)
{
    static const struct wire_name names[] = {
        {&frame_name, "_frame"},   {&parse_name, "_parse"}, {&heard_name, "_heard"},
        {&refuse_name, "_refuse"}, {&start_name, START},    {&error_name, ERROR},
    };
    PyObject *machine_type;
    int result;

    if (wire_make_names(names, sizeof(names) / sizeof(*names)) < 0)
        return -1;
    events_type = (PyTypeObject *)PyType_FromSpec(&events_spec);
    machine_type = PyType_FromSpec(&machine_spec);
    if (events_type == NULL || machine_type == NULL)
        return -1;
    result = PyModule_AddObjectRef(module, "Machine", machine_type);
    Py_DECREF(machine_type);
    return result;
}
