/*
 * Requests, answers and notices as values: what they may hold is checked here alone, once, when one
 * is made, by Python or of bytes; then nothing changes them. All other events are Python's.
 */
#include "wire.h"

#include <stddef.h>
#include <structmember.h>

PyObject *wire_request_class, *wire_answer_class, *wire_notice_class;
PyObject *wire_error_answer_class, *wire_closed_class; /* of events.py */
static PyObject *known_methods, *check_unknown_method;

PyObject *wire_deadline_name, *wire_hello_name;

static int refuse_event(const char *what)
{
    PyErr_SetString(wire_local_error, what);
    return -1;
}

long long wire_natural(PyObject *value)
{
    int overflow;
    long long number;

    if (!PyLong_CheckExact(value))
        return -1;
    number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return overflow ? -1 : number;
}

/* --- what they may hold: these return 0, or -1 with an error --- */

static int check_id(PyObject *id)
{
    long long number = wire_natural(id);

    return number >= 0 && number <= ID_MAX
               ? 0
               : refuse_event("the id of a call is not an integer from 0 to 2^32-1");
}

static int check_method(PyObject *method)
{
    PyObject *checked;
    int is_known = PyUnicode_CheckExact(method) ? PySet_Contains(known_methods, method) : 0;

    if (is_known != 0)
        return is_known < 0 ? -1 : 0;
    checked = PyObject_CallFunctionObjArgs(check_unknown_method, method, NULL);
    Py_XDECREF(checked);
    return checked == NULL ? -1 : 0;
}

static int check_request(PyObject *const *values)
{
    long long milliseconds = wire_natural(values[REQUEST_DEADLINE]);
    PyObject *params = values[REQUEST_PARAMS];
    int is_in;

    if (check_id(values[REQUEST_ID]) < 0 || check_method(values[REQUEST_METHOD]) < 0)
        return -1;
    if (!PyDict_CheckExact(params))
        return refuse_event("parameters are not a map");
    is_in = PyDict_Contains(params, wire_deadline_name);
    if (is_in != 0)
        return is_in < 0 ? -1 : refuse_event("the parameter deadline_ms is the protocol's own");
    if (milliseconds < 1 || milliseconds > DEADLINE_MS_MAX) {
        PyErr_Format(wire_local_error, "a request has no deadline from 1 to %d milliseconds",
                     DEADLINE_MS_MAX);
        return -1;
    }
    return 0;
}

static int check_answer(PyObject *const *values)
{
    if (check_id(values[ANSWER_ID]) < 0)
        return -1;
    return PyDict_CheckExact(values[ANSWER_RESULT]) ? 0 : refuse_event("a result is not a map");
}

static int check_notice(PyObject *const *values)
{
    if (check_method(values[NOTICE_METHOD]) < 0)
        return -1;
    if (PyUnicode_Compare(values[NOTICE_METHOD], wire_hello_name) == 0)
        return refuse_event("a notice cannot be called hello: that is the first frame");
    return PyDict_CheckExact(values[NOTICE_PARAMS]) ? 0
                                                    : refuse_event("parameters are not a map");
}

/* --- their types --- */

static PyObject *make(PyTypeObject *type, int count, PyObject *const *values)
{
    struct wire_event *event = (struct wire_event *)PyType_GenericAlloc(type, 0);

    for (int i = 0; event != NULL && i < count; i++) {
        Py_INCREF(values[i]);
        event->values[i] = values[i];
    }
    return (PyObject *)event;
}

PyObject *wire_make_request(PyObject *const *values)
{
    return check_request(values) < 0 ? NULL : make((PyTypeObject *)wire_request_class, 4, values);
}

PyObject *wire_make_answer(PyObject *const *values)
{
    return check_answer(values) < 0 ? NULL : make((PyTypeObject *)wire_answer_class, 2, values);
}

PyObject *wire_make_notice(PyObject *const *values)
{
    return check_notice(values) < 0 ? NULL : make((PyTypeObject *)wire_notice_class, 2, values);
}

/* The object that a class of Python makes of its arguments, which have these names. */
static PyObject *new_event(PyObject *arguments, PyObject *named, const char *format, char **names,
                           PyObject *(*make_checked)(PyObject *const *))
{
    PyObject *values[4] = {NULL};
    Py_ssize_t count = 0;

    while (names[count] != NULL)
        count++;
    if (named == NULL && PyTuple_Size(arguments) == count) {
        for (Py_ssize_t i = 0; i < count; i++) /* as almost always, and faster */
            values[i] = PyTuple_GetItem(arguments, i);
    } else if (!PyArg_ParseTupleAndKeywords(arguments, named, format, names, &values[0], &values[1],
                                            &values[2], &values[3])) {
        return NULL;
    }
    return make_checked(values);
}

static PyObject *new_request(PyTypeObject *Py_UNUSED(type), PyObject *arguments, PyObject *named)
{
    static char *names[] = {"id", "method", "params", "deadline_ms", NULL};

    return new_event(arguments, named, "OOOO:Request", names, wire_make_request);
}

static PyObject *new_answer(PyTypeObject *Py_UNUSED(type), PyObject *arguments, PyObject *named)
{
    static char *names[] = {"id", "result", NULL};

    return new_event(arguments, named, "OO:Answer", names, wire_make_answer);
}

static PyObject *new_notice(PyTypeObject *Py_UNUSED(type), PyObject *arguments, PyObject *named)
{
    static char *names[] = {"method", "params", NULL};

    return new_event(arguments, named, "OO:Notice", names, wire_make_notice);
}

static void free_event(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    int count = type == (PyTypeObject *)wire_request_class ? 4 : 2;

    for (int i = 0; i < count; i++)
        Py_XDECREF(((struct wire_event *)self)->values[i]);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

#define MEMBER(name, index) \
    {name, T_OBJECT_EX, offsetof(struct wire_event, values) + (index) * sizeof(PyObject *), \
     READONLY, NULL}

static PyMemberDef request_members[] = {
    MEMBER("id", REQUEST_ID),
    MEMBER("method", REQUEST_METHOD),
    MEMBER("params", REQUEST_PARAMS),
    MEMBER("deadline_ms", REQUEST_DEADLINE),
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef answer_members[] = {
    MEMBER("id", ANSWER_ID),
    MEMBER("result", ANSWER_RESULT),
    {NULL, 0, 0, 0, NULL},
};
static PyMemberDef notice_members[] = {
    MEMBER("method", NOTICE_METHOD),
    MEMBER("params", NOTICE_PARAMS),
    {NULL, 0, 0, 0, NULL},
};

/*
 * A class of events.py's `base` with these members, which are its __slots__. The collector of
 * garbage does not look at its objects: they hold plain data, which do not lead back to them.
 */
static PyObject *make_class(const char *name, PyObject *base, newfunc new, PyMemberDef *members)
{
    PyType_Slot slots[] = {
        {Py_tp_new, (void *)new},
        {Py_tp_dealloc, (void *)free_event},
        {Py_tp_members, members},
        {0, NULL},
    };
    PyType_Spec spec = {name, sizeof(struct wire_event), 0, Py_TPFLAGS_DEFAULT, slots};
    PyObject *class, *names = PyList_New(0), *text;

    for (int i = 0; members[i].name != NULL; i++) {
        spec.basicsize += (int)sizeof(PyObject *);
        text = PyUnicode_FromString(members[i].name);
        if (names == NULL || text == NULL || PyList_Append(names, text) < 0)
            Py_CLEAR(names);
        Py_XDECREF(text);
    }
    class = names == NULL ? NULL : PyType_FromSpecWithBases(&spec, base);
    if (class != NULL && PyObject_SetAttrString(class, "__slots__", names) < 0)
        Py_CLEAR(class);
    Py_XDECREF(names);
    return class;
}

/* --- for Python --- */

int wire_is_introduced(void)
{
    if (wire_closed_class != NULL)
        return 1;
    PyErr_SetString(PyExc_TypeError, "the classes of events are not introduced");
    return 0;
}

PyObject *wire_make_classes(PyObject *module, PyObject *arguments)
{
    PyObject *base;

    if (!PyArg_ParseTuple(arguments, "OOO", &base, &known_methods, &check_unknown_method))
        return NULL;
    Py_INCREF(known_methods);
    Py_INCREF(check_unknown_method);
    wire_request_class =
        make_class("pedos_protocol.events.Request", base, new_request, request_members);
    wire_answer_class = make_class("pedos_protocol.events.Answer", base, new_answer, answer_members);
    wire_notice_class = make_class("pedos_protocol.events.Notice", base, new_notice, notice_members);
    if (wire_request_class == NULL || wire_answer_class == NULL || wire_notice_class == NULL)
        return NULL;
    if (PyModule_AddObjectRef(module, "Request", wire_request_class) < 0 ||
        PyModule_AddObjectRef(module, "Answer", wire_answer_class) < 0 ||
        PyModule_AddObjectRef(module, "Notice", wire_notice_class) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *wire_introduce(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    if (!PyArg_ParseTuple(arguments, "OO", &wire_error_answer_class, &wire_closed_class))
        return NULL;
    Py_INCREF(wire_error_answer_class);
    Py_INCREF(wire_closed_class);
    Py_RETURN_NONE;
}

PyObject *wire_check_id(PyObject *Py_UNUSED(module), PyObject *id)
{
    if (check_id(id) < 0)
        return NULL;
    Py_RETURN_NONE;
}

int wire_values_ready(void)
{
    static const struct wire_name names[] = {
        {&wire_deadline_name, "deadline_ms"},
        {&wire_hello_name, HELLO},
    };

    return wire_make_names(names, sizeof(names) / sizeof(*names));
}
