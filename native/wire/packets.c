/*
 * The fields of the datagrams that call_link.py describes, by its table: there a field is the most
 * bytes of a text, or minus the bytes of a number, or a tuple of what the values of a byte mean,
 * with None for one that means nothing.
 */
#include "wire.h"

#include <string.h>

struct cursor {
    uint8_t *at, *end;
};

/* The next bytes; NULL if there are not so many left. */
static uint8_t *step(struct cursor *cursor, size_t count)
{
    uint8_t *here = cursor->at;

    if ((size_t)(cursor->end - here) < count)
        return NULL;
    cursor->at += count;
    return here;
}

/* Whether valid UTF-8 has no control characters: those below the blank, and U+007F to U+009F. */
static int is_line(const uint8_t *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (text[i] < ' ' || text[i] == 0x7f || (text[i] == 0xc2 && text[i + 1] < 0xa0))
            return 0;
    return 1;
}

static PyObject *cut(void)
{
    PyErr_SetString(wire_remote_error, "a message that is cut, or has bytes left over");
    return NULL;
}

static PyObject *read_text(struct cursor *cursor, size_t most)
{
    const uint8_t *at = step(cursor, 2);
    PyObject *text;
    size_t size;

    if (at == NULL)
        return cut();
    size = at[0] | (size_t)at[1] << 8;
    if (size > most)
        return PyErr_Format(wire_remote_error, "a text of %zu bytes", size);
    at = step(cursor, size);
    if (at == NULL)
        return cut();
    text = PyUnicode_DecodeUTF8((const char *)at, (Py_ssize_t)size, "strict");
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_SetString(wire_remote_error, "a text that is not UTF-8");
    } else if (text != NULL && !is_line(at, size)) {
        PyErr_SetString(wire_remote_error, "a text with control characters");
        Py_CLEAR(text);
    }
    return text;
}

static PyObject *read_field(struct cursor *cursor, PyObject *field)
{
    long limit = PyTuple_Check(field) ? -1 : PyLong_AsLong(field);
    const uint8_t *at;
    PyObject *meant;

    if (limit >= 0)
        return read_text(cursor, (size_t)limit);
    at = step(cursor, (size_t)-limit);
    if (at == NULL)
        return cut();
    if (!PyTuple_Check(field))
        return PyLong_FromLong(limit == -1 ? at[0] : at[0] | at[1] << 8);
    meant = *at < PyTuple_Size(field) ? PyTuple_GetItem(field, *at) : Py_None;
    if (meant == Py_None)
        return PyErr_Format(wire_remote_error, "a byte that means nothing there: %d", *at);
    Py_INCREF(meant);
    return meant;
}

PyObject *wire_read_packet(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *fields, *values, *value;
    struct cursor cursor;
    Py_buffer buffer;
    Py_ssize_t count;

    if (!PyArg_ParseTuple(arguments, "O!y*", &PyTuple_Type, &fields, &buffer))
        return NULL;
    count = PyTuple_Size(fields);
    values = PyTuple_New(count);
    cursor.at = buffer.buf;
    cursor.end = cursor.at + buffer.len;
    step(&cursor, 1); /* its type, by which the fields were chosen */
    for (Py_ssize_t i = 0; values != NULL && i < count; i++) {
        value = read_field(&cursor, PyTuple_GetItem(fields, i));
        if (value == NULL || PyTuple_SetItem(values, i, value) < 0)
            Py_CLEAR(values);
    }
    if (values != NULL && cursor.at != cursor.end) {
        Py_CLEAR(values);
        cut();
    }
    PyBuffer_Release(&buffer);
    return values;
}

/* These return 0, or -1 with an error. */

static int refuse(PyObject *value)
{
    PyErr_Format(wire_local_error, "no field of a message: %R", value);
    return -1;
}

static int write_text(struct cursor *cursor, PyObject *text, size_t most)
{
    PyObject *encoded;
    size_t size;
    uint8_t *at;

    if (!PyUnicode_Check(text))
        return refuse(text);
    encoded = PyUnicode_AsEncodedString(text, "utf-8", "replace");
    if (encoded == NULL)
        return -1;
    size = (size_t)PyBytes_Size(encoded);
    at = size <= most ? step(cursor, 2 + size) : NULL;
    if (at != NULL) {
        at[0] = (uint8_t)size;
        at[1] = (uint8_t)(size >> 8);
        memcpy(at + 2, PyBytes_AsString(encoded), size);
    }
    Py_DECREF(encoded);
    return at != NULL && is_line(at + 2, size) ? 0 : refuse(text);
}

static int write_field(struct cursor *cursor, PyObject *field, PyObject *value)
{
    long limit = PyTuple_Check(field) ? -1 : PyLong_AsLong(field), number;
    int overflow = 0;
    uint8_t *at;

    if (limit >= 0)
        return write_text(cursor, value, (size_t)limit);
    if (PyTuple_Check(field)) {
        number = value == Py_None ? -1 : PySequence_Index(field, value);
        PyErr_Clear();
    } else {
        number = PyLong_Check(value) ? PyLong_AsLongAndOverflow(value, &overflow) : -1;
    }
    if (number < 0 || number >= 1l << (-8 * limit) || (at = step(cursor, (size_t)-limit)) == NULL)
        return refuse(value);
    at[0] = (uint8_t)number;
    if (limit < -1)
        at[1] = (uint8_t)(number >> 8);
    return 0;
}

PyObject *wire_write_packet(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    uint8_t bytes[DATAGRAM_MAX];
    struct cursor cursor = {bytes + 1, bytes + sizeof bytes};
    PyObject *fields, *values;

    if (!PyArg_ParseTuple(arguments, "bO!O!", bytes, &PyTuple_Type, &fields, &PyTuple_Type,
                          &values))
        return NULL;
    if (PyTuple_Size(fields) != PyTuple_Size(values)) {
        refuse(values);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(fields); i++)
        if (write_field(&cursor, PyTuple_GetItem(fields, i), PyTuple_GetItem(values, i)) < 0)
            return NULL;
    return PyBytes_FromStringAndSize((const char *)bytes, cursor.at - bytes);
}
