/* Writing. No Python code runs in here: what is written cannot change meanwhile. */
#include "wire.h"

#include <math.h>
#include <string.h>

/* The writing functions return 0, or -1 with an error. */
static int unsayable(const char *why)
{
    PyErr_Format(wire_local_error, "this message cannot be sent: %s", why);
    return -1;
}

static int put(struct wire_writer *writer, const void *bytes, size_t size)
{
    if (size > FRAME_MAX - writer->size)
        return unsayable(WIRE_TOO_LARGE);
    memcpy(writer->frame + HEADER_SIZE + writer->size, bytes, size);
    writer->size += size;
    return 0;
}

static int put_byte(struct wire_writer *writer, uint8_t byte)
{
    return put(writer, &byte, 1);
}

/* `first`, and `number` in `size` bytes behind it. */
static int put_number(struct wire_writer *writer, uint8_t first, uint64_t number, size_t size)
{
    uint8_t bytes[9] = {first};

    for (size_t i = size; i > 0; i--) {
        bytes[i] = (uint8_t)number;
        number >>= 8;
    }
    return put(writer, bytes, size + 1);
}

/* Like `first`, `first + 1` and so on, in the fewest bytes: 1, 2, 4 or 8. */
static int put_shortest(struct wire_writer *writer, uint8_t first, uint64_t number)
{
    unsigned power = number <= UINT8_MAX ? 0 : number <= UINT16_MAX ? 1 : number <= UINT32_MAX ? 2 : 3;

    return put_number(writer, (uint8_t)(first + power), number, (size_t)1 << power);
}

static int put_signed(struct wire_writer *writer, int64_t number)
{
    if (number >= 0 && number < 0x80)
        return put_byte(writer, (uint8_t)number);
    if (number >= 0)
        return put_shortest(writer, 0xcc, (uint64_t)number);
    if (number >= -32)
        return put_byte(writer, (uint8_t)number);
    if (number >= INT8_MIN)
        return put_number(writer, 0xd0, (uint64_t)number, 1);
    if (number >= INT16_MIN)
        return put_number(writer, 0xd1, (uint64_t)number, 2);
    if (number >= INT32_MIN)
        return put_number(writer, 0xd2, (uint64_t)number, 4);
    return put_number(writer, 0xd3, (uint64_t)number, 8);
}

static int write_integer(struct wire_writer *writer, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);

    if (overflow == 0)
        return put_signed(writer, number);
    if (overflow > 0) {
        unsigned long long large = PyLong_AsUnsignedLongLong(value);
        if (!PyErr_Occurred())
            return put_number(writer, 0xcf, large, 8);
        PyErr_Clear();
    }
    return unsayable("an integer has more than 64 bits");
}

static int write_float(struct wire_writer *writer, PyObject *value)
{
    double number = PyFloat_AsDouble(value);
    uint64_t bits;

    if (!isfinite(number))
        return unsayable(WIRE_NOT_FINITE);
    memcpy(&bits, &number, sizeof(bits));
    return put_number(writer, 0xcb, bits, 8);
}

int wire_write_text(struct wire_writer *writer, PyObject *value)
{
    Py_ssize_t size;
    const char *bytes = PyUnicode_AsUTF8AndSize(value, &size);

    if (bytes == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
            return -1;
        PyErr_Clear();
        return unsayable("a text is not Unicode");
    }
    if ((size < 32 ? put_byte(writer, (uint8_t)(0xa0 | size))
                   : put_shortest(writer, 0xd9, (uint64_t)size)) < 0)
        return -1;
    return put(writer, bytes, (size_t)size);
}

static int write_bytes(struct wire_writer *writer, PyObject *value)
{
    Py_ssize_t size;
    char *bytes;

    if (PyBytes_AsStringAndSize(value, &bytes, &size) < 0)
        return -1;
    if (put_shortest(writer, 0xc4, (uint64_t)size) < 0)
        return -1;
    return put(writer, bytes, (size_t)size);
}

/* The header of a list or map of so many entries: `brief` with the count in it, or `first`. */
static int write_header(struct wire_writer *writer, Py_ssize_t count, int depth, uint8_t brief,
                        uint8_t first)
{
    if (depth == DEPTH_MAX)
        return unsayable(WIRE_TOO_DEEP);
    if (count > ITEMS_MAX)
        return unsayable(WIRE_TOO_LONG);
    if (++writer->containers > CONTAINERS_MAX)
        return unsayable(WIRE_TOO_MANY);
    if (count < 16)
        return put_byte(writer, (uint8_t)(brief | count));
    return put_number(writer, first, (uint64_t)count, 2);
}

int wire_write_list_header(struct wire_writer *writer, Py_ssize_t count, int depth)
{
    return write_header(writer, count, depth, 0x90, 0xdc);
}

int wire_write_map_header(struct wire_writer *writer, Py_ssize_t count, int depth)
{
    return write_header(writer, count, depth, 0x80, 0xde);
}

static int write_list(struct wire_writer *writer, PyObject *list, int depth)
{
    Py_ssize_t count = PyList_Size(list);

    if (wire_write_list_header(writer, count, depth) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < count; i++)
        if (wire_write_value(writer, PyList_GetItem(list, i), depth + 1) < 0)
            return -1;
    return 0;
}

int wire_write_entries(struct wire_writer *writer, PyObject *map, int depth)
{
    PyObject *key, *value;
    Py_ssize_t place = 0;

    while (PyDict_Next(map, &place, &key, &value)) {
        if (!PyUnicode_CheckExact(key))
            return unsayable(WIRE_KEY_NO_TEXT);
        if (wire_write_text(writer, key) < 0 || wire_write_value(writer, value, depth) < 0)
            return -1;
    }
    return 0;
}

static int write_map(struct wire_writer *writer, PyObject *map, int depth)
{
    if (wire_write_map_header(writer, PyDict_Size(map), depth) < 0)
        return -1;
    return wire_write_entries(writer, map, depth + 1);
}

int wire_wrong_type(const char *format, PyObject *value)
{
    PyObject *name = PyType_GetName(Py_TYPE(value));

    if (name != NULL) {
        PyErr_Format(wire_local_error, format, name);
        Py_DECREF(name);
    }
    return -1;
}

/* Exact types alone: what is written is what is read. */
int wire_write_value(struct wire_writer *writer, PyObject *value, int depth)
{
    if (PyUnicode_CheckExact(value))
        return wire_write_text(writer, value);
    if (PyDict_CheckExact(value))
        return write_map(writer, value, depth);
    if (PyLong_CheckExact(value))
        return write_integer(writer, value);
    if (PyList_CheckExact(value))
        return write_list(writer, value, depth);
    if (PyBytes_CheckExact(value))
        return write_bytes(writer, value);
    if (PyFloat_CheckExact(value))
        return write_float(writer, value);
    if (value == Py_None)
        return put_byte(writer, 0xc0);
    if (value == Py_False)
        return put_byte(writer, 0xc2);
    if (value == Py_True)
        return put_byte(writer, 0xc3);
    return wire_wrong_type("this message cannot be sent: a value is a %U, which is not sent", value);
}

void wire_begin(struct wire_writer *writer)
{
    writer->size = writer->containers = 0;
}

PyObject *wire_finish(struct wire_writer *writer)
{
    for (int i = 0; i < HEADER_SIZE; i++)
        writer->frame[i] = (uint8_t)(writer->size >> (8 * i));
    return PyBytes_FromStringAndSize((const char *)writer->frame,
                                     (Py_ssize_t)(HEADER_SIZE + writer->size));
}
