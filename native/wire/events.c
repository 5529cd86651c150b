/*
 * The events of which there are many, requests, answers and notices, said and heard without a step
 * of Python between bytes and event. All other frames are lists for connection.py.
 */
#include "wire.h"

/* --- heard --- */

static PyObject *request_of(PyObject *id, PyObject *method, PyObject *params)
{
    PyObject *deadline_ms = PyDict_GetItemWithError(params, wire_deadline_name), *event = NULL;

    if (deadline_ms == NULL) {
        PyObject *values[] = {id, method, params, Py_None};
        return PyErr_Occurred() ? NULL : wire_make_request(values); /* it says what is wrong */
    }
    Py_INCREF(deadline_ms);
    if (PyDict_DelItem(params, wire_deadline_name) == 0) {
        PyObject *values[] = {id, method, params, deadline_ms};
        event = wire_make_request(values);
    }
    Py_DECREF(deadline_ms);
    return event;
}

PyObject *wire_event_of(PyObject *message)
{
    Py_ssize_t count = PyList_Size(message);
    PyObject *items[4] = {NULL};
    long long kind;

    if (count == 3 || count == 4) {
        for (Py_ssize_t i = 0; i < count; i++)
            items[i] = PyList_GetItem(message, i);
        kind = wire_natural(items[0]);
        if (kind == REQUEST && count == 4 && PyDict_CheckExact(items[3]))
            return request_of(items[1], items[2], items[3]);
        if (kind == RESPONSE && count == 4 && items[2] == Py_None) {
            PyObject *values[] = {items[1], items[3]};
            return wire_make_answer(values);
        }
        if (kind == NOTICE && count == 3 && !(PyUnicode_CheckExact(items[1]) &&
                                              PyUnicode_Compare(items[1], wire_hello_name) == 0))
            return wire_make_notice(items + 1);
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

/* The deadline is one parameter more. */
static int write_request(struct wire_writer *writer, PyObject *const *values)
{
    PyObject *params = values[REQUEST_PARAMS];

    if (wire_write_list_header(writer, 4, 0) < 0 || write_number(writer, REQUEST) < 0 ||
        wire_write_value(writer, values[REQUEST_ID], 1) < 0 ||
        wire_write_value(writer, values[REQUEST_METHOD], 1) < 0 ||
        wire_write_map_header(writer, PyDict_Size(params) + 1, 1) < 0 ||
        wire_write_entries(writer, params, 2) < 0 || wire_write_text(writer, wire_deadline_name) < 0)
        return -1;
    return wire_write_value(writer, values[REQUEST_DEADLINE], 2);
}

static int write_answer(struct wire_writer *writer, PyObject *const *values)
{
    if (wire_write_list_header(writer, 4, 0) < 0 || write_number(writer, RESPONSE) < 0 ||
        wire_write_value(writer, values[ANSWER_ID], 1) < 0 ||
        wire_write_value(writer, Py_None, 1) < 0)
        return -1;
    return wire_write_value(writer, values[ANSWER_RESULT], 1);
}

static int write_notice(struct wire_writer *writer, PyObject *const *values)
{
    if (wire_write_list_header(writer, 3, 0) < 0 || write_number(writer, NOTICE) < 0 ||
        wire_write_value(writer, values[NOTICE_METHOD], 1) < 0)
        return -1;
    return wire_write_value(writer, values[NOTICE_PARAMS], 1);
}

PyObject *wire_frame_of(PyObject *event)
{
    PyObject *class = (PyObject *)Py_TYPE(event);
    PyObject *const *values = ((struct wire_event *)event)->values;
    struct wire_writer writer;
    int result;

    wire_begin(&writer);
    if (class == wire_request_class)
        result = write_request(&writer, values);
    else if (class == wire_answer_class)
        result = write_answer(&writer, values);
    else if (class == wire_notice_class)
        result = write_notice(&writer, values);
    else
        Py_RETURN_NONE;
    return result < 0 ? NULL : wire_finish(&writer);
}
