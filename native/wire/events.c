/*
 * The events of which there are many: requests, answers and notices, said and heard without a step
 * of Python between bytes and event. What an event may be is checked here alone; its class in
 * events.py asks for that when Python makes one. All other frames are lists for connection.py.
 */
#include "wire.h"

/* Of events.py: see wire_introduce(). */
PyObject *wire_request_class, *wire_answer_class, *wire_error_answer_class, *wire_notice_class;
PyObject *wire_closed_class;
static PyObject *known_methods, *check_unknown_method;

/* Names of attributes and keys. */
static PyObject *id_name, *method_name, *params_name, *deadline_name, *result_name, *hello_name;

static int refuse_event(const char *what)
{
    PyErr_SetString(wire_local_error, what);
    return -1;
}

/* The number that an integer is, or -1; True is none. */
static long long natural(PyObject *value)
{
    int overflow;
    long long number;

    if (!PyLong_CheckExact(value))
        return -1;
    number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return overflow ? -1 : number;
}

/* The checks return 0, or -1 with an error. */
static int check_id(PyObject *id)
{
    long long number = natural(id);

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

static int check_request(PyObject *id, PyObject *method, PyObject *params, PyObject *deadline_ms)
{
    long long milliseconds = natural(deadline_ms);
    int is_in;

    if (check_id(id) < 0 || check_method(method) < 0)
        return -1;
    if (!PyDict_CheckExact(params))
        return refuse_event("parameters are not a map");
    is_in = PyDict_Contains(params, deadline_name);
    if (is_in != 0)
        return is_in < 0 ? -1 : refuse_event("the parameter deadline_ms is the protocol's own");
    if (milliseconds < 1 || milliseconds > DEADLINE_MS_MAX) {
        PyErr_Format(wire_local_error, "a request has no deadline from 1 to %d milliseconds",
                     DEADLINE_MS_MAX);
        return -1;
    }
    return 0;
}

static int check_answer(PyObject *id, PyObject *result)
{
    if (check_id(id) < 0)
        return -1;
    return PyDict_CheckExact(result) ? 0 : refuse_event("a result is not a map");
}

static int check_notice(PyObject *method, PyObject *params)
{
    if (check_method(method) < 0)
        return -1;
    if (PyUnicode_Compare(method, hello_name) == 0)
        return refuse_event("a notice cannot be called hello: that is the first frame");
    return PyDict_CheckExact(params) ? 0 : refuse_event("parameters are not a map");
}

int wire_is_introduced(void)
{
    if (check_unknown_method != NULL)
        return 1;
    PyErr_SetString(PyExc_TypeError, "the classes of events are not introduced");
    return 0;
}

/* Whether as many arguments came as are expected, and the classes before them; 0 with an error. */
static int has_arguments(Py_ssize_t count, Py_ssize_t expected)
{
    if (count == expected)
        return wire_is_introduced();
    PyErr_Format(PyExc_TypeError, "%zd values are expected", expected);
    return 0;
}

static PyObject *none_or_error(int result)
{
    if (result < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* --- heard --- */

/* An event of this class with so many attributes; their values were checked. */
static PyObject *make_event(PyObject *class, int count, PyObject *const *names,
                            PyObject *const *values)
{
    PyObject *event = PyType_GenericAlloc((PyTypeObject *)class, 0);

    for (int i = 0; event != NULL && i < count; i++)
        if (PyObject_SetAttr(event, names[i], values[i]) < 0)
            Py_CLEAR(event);
    return event;
}

static PyObject *request_of(PyObject *id, PyObject *method, PyObject *params)
{
    PyObject *names[] = {id_name, method_name, params_name, deadline_name};
    PyObject *deadline_ms = PyDict_GetItemWithError(params, deadline_name);
    PyObject *values[] = {id, method, params, deadline_ms}, *event = NULL;

    if (deadline_ms == NULL) {
        if (!PyErr_Occurred())
            check_request(id, method, params, Py_None); /* which says what is wrong */
        return NULL;
    }
    Py_INCREF(deadline_ms);
    if (PyDict_DelItem(params, deadline_name) == 0 &&
        check_request(id, method, params, deadline_ms) == 0)
        event = make_event(wire_request_class, 4, names, values);
    Py_DECREF(deadline_ms);
    return event;
}

static PyObject *answer_of(PyObject *id, PyObject *result)
{
    PyObject *names[] = {id_name, result_name}, *values[] = {id, result};

    if (check_answer(id, result) < 0)
        return NULL;
    return make_event(wire_answer_class, 2, names, values);
}

static PyObject *notice_of(PyObject *method, PyObject *params)
{
    PyObject *names[] = {method_name, params_name}, *values[] = {method, params};

    if (check_notice(method, params) < 0)
        return NULL;
    return make_event(wire_notice_class, 2, names, values);
}

PyObject *wire_event_of(PyObject *message)
{
    Py_ssize_t count = PyList_Size(message);
    PyObject *items[4] = {NULL};
    long long kind;

    if (count == 3 || count == 4) {
        for (Py_ssize_t i = 0; i < count; i++)
            items[i] = PyList_GetItem(message, i);
        kind = natural(items[0]);
        if (kind == REQUEST && count == 4 && PyDict_CheckExact(items[3]))
            return request_of(items[1], items[2], items[3]);
        if (kind == RESPONSE && count == 4 && items[2] == Py_None)
            return answer_of(items[1], items[3]);
        if (kind == NOTICE && count == 3 && !(PyUnicode_CheckExact(items[1]) &&
                                              PyUnicode_Compare(items[1], hello_name) == 0))
            return notice_of(items[1], items[2]);
    }
    Py_INCREF(message);
    return message;
}

/* --- said --- */

static int write_number(struct wire_writer *writer, long number)
{
    PyObject *value = PyLong_FromLong(number);
    int result = value == NULL ? -1 : wire_write_value(writer, value, 1);

    Py_XDECREF(value);
    return result;
}

static int write_attribute(struct wire_writer *writer, PyObject *event, PyObject *name, int depth)
{
    PyObject *value = PyObject_GetAttr(event, name);
    int result = value == NULL ? -1 : wire_write_value(writer, value, depth);

    Py_XDECREF(value);
    return result;
}

/* The parameters of a request, and its deadline as one more. */
static int write_params(struct wire_writer *writer, PyObject *event)
{
    PyObject *params = PyObject_GetAttr(event, params_name);
    int result = -1;

    if (params != NULL && !PyDict_CheckExact(params))
        refuse_event("parameters are not a map");
    else if (params != NULL && wire_write_map_header(writer, PyDict_Size(params) + 1, 1) == 0 &&
             wire_write_entries(writer, params, 2) == 0 &&
             wire_write_text(writer, deadline_name) == 0)
        result = write_attribute(writer, event, deadline_name, 2);
    Py_XDECREF(params);
    return result;
}

static int write_request(struct wire_writer *writer, PyObject *event)
{
    if (wire_write_list_header(writer, 4, 0) < 0 || write_number(writer, REQUEST) < 0 ||
        write_attribute(writer, event, id_name, 1) < 0 ||
        write_attribute(writer, event, method_name, 1) < 0)
        return -1;
    return write_params(writer, event);
}

static int write_answer(struct wire_writer *writer, PyObject *event)
{
    if (wire_write_list_header(writer, 4, 0) < 0 || write_number(writer, RESPONSE) < 0 ||
        write_attribute(writer, event, id_name, 1) < 0 ||
        wire_write_value(writer, Py_None, 1) < 0)
        return -1;
    return write_attribute(writer, event, result_name, 1);
}

static int write_notice(struct wire_writer *writer, PyObject *event)
{
    if (wire_write_list_header(writer, 3, 0) < 0 || write_number(writer, NOTICE) < 0 ||
        write_attribute(writer, event, method_name, 1) < 0)
        return -1;
    return write_attribute(writer, event, params_name, 1);
}

PyObject *wire_frame_of(PyObject *event)
{
    PyObject *class = (PyObject *)Py_TYPE(event);
    struct wire_writer writer;
    int result;

    wire_begin(&writer);
    if (class == wire_request_class)
        result = write_request(&writer, event);
    else if (class == wire_answer_class)
        result = write_answer(&writer, event);
    else if (class == wire_notice_class)
        result = write_notice(&writer, event);
    else
        Py_RETURN_NONE;
    return result < 0 ? NULL : wire_finish(&writer);
}

/* --- for Python --- */

PyObject *wire_check_id(PyObject *Py_UNUSED(module), PyObject *id)
{
    return none_or_error(check_id(id));
}

PyObject *wire_check_request(PyObject *Py_UNUSED(module), PyObject *const *values, Py_ssize_t count)
{
    if (!has_arguments(count, 4))
        return NULL;
    return none_or_error(check_request(values[0], values[1], values[2], values[3]));
}

PyObject *wire_check_answer(PyObject *Py_UNUSED(module), PyObject *const *values, Py_ssize_t count)
{
    if (!has_arguments(count, 2))
        return NULL;
    return none_or_error(check_answer(values[0], values[1]));
}

PyObject *wire_check_notice(PyObject *Py_UNUSED(module), PyObject *const *values, Py_ssize_t count)
{
    if (!has_arguments(count, 2))
        return NULL;
    return none_or_error(check_notice(values[0], values[1]));
}

PyObject *wire_introduce(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    if (!PyArg_ParseTuple(arguments, "OOOOOOO", &wire_request_class, &wire_answer_class,
                          &wire_error_answer_class, &wire_notice_class, &wire_closed_class,
                          &known_methods, &check_unknown_method))
        return NULL;
    Py_INCREF(wire_request_class);
    Py_INCREF(wire_answer_class);
    Py_INCREF(wire_error_answer_class);
    Py_INCREF(wire_notice_class);
    Py_INCREF(wire_closed_class);
    Py_INCREF(known_methods);
    Py_INCREF(check_unknown_method);
    Py_RETURN_NONE;
}

int wire_events_ready(void)
{
    static const struct wire_name names[] = {
        {&id_name, "id"},
        {&method_name, "method"},
        {&params_name, "params"},
        {&deadline_name, "deadline_ms"},
        {&result_name, "result"},
        {&hello_name, HELLO},
    };

    return wire_make_names(names, sizeof(names) / sizeof(*names));
}
