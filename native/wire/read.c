/*
 * Reading. No value is believed before it is compared with the data: a size with the remaining
 * bytes, a number of entries with the bytes that they need at least and with ITEMS_MAX, all before
 * memory is allocated. What was built of a refused frame is freed at once.
 */
#include "wire.h"

#include <math.h>
#include <string.h>

struct reader {
    const uint8_t *at, *end;
    unsigned containers;
};

static PyObject *refuse(const char *why)
{
    PyErr_Format(wire_remote_error, "a frame cannot be accepted: %s", why);
    return NULL;
}

static PyObject *unreadable(const char *why)
{
    PyErr_Format(wire_remote_error, "a frame is not readable MessagePack: %s", why);
    return NULL;
}

/* The next `size` bytes, which are then consumed; NULL with an error if there are fewer. */
static const uint8_t *take(struct reader *reader, size_t size)
{
    const uint8_t *taken = reader->at;

    if (size > (size_t)(reader->end - reader->at)) {
        unreadable("it ends in the middle");
        return NULL;
    }
    reader->at += size;
    return taken;
}

/* A big-endian number of `size` bytes (1, 2, 4 or 8). Returns 0, or -1 with an error. */
static int take_number(struct reader *reader, size_t size, uint64_t *number)
{
    const uint8_t *bytes = take(reader, size);

    if (bytes == NULL)
        return -1;
    *number = 0;
    for (size_t i = 0; i < size; i++)
        *number = *number << 8 | bytes[i];
    return 0;
}

static PyObject *read_value(struct reader *reader, int depth);

static PyObject *read_text(struct reader *reader, size_t size)
{
    const uint8_t *bytes = take(reader, size);
    PyObject *text;

    if (bytes == NULL)
        return NULL;
    text = PyUnicode_DecodeUTF8((const char *)bytes, (Py_ssize_t)size, NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear(); /* its words contain the sender's bytes */
        return unreadable("a text is not UTF-8");
    }
    return text;
}

static PyObject *read_bytes(struct reader *reader, size_t size)
{
    const uint8_t *bytes = take(reader, size);

    return bytes == NULL ? NULL : PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
}

static PyObject *read_float(double number)
{
    return isfinite(number) ? PyFloat_FromDouble(number) : refuse(WIRE_NOT_FINITE);
}

/* An integer of `size` bytes with a sign. */
static PyObject *read_signed(struct reader *reader, size_t size)
{
    uint64_t number, sign = (uint64_t)1 << (8 * size - 1);

    if (take_number(reader, size, &number) < 0)
        return NULL;
    return PyLong_FromLongLong((int64_t)((number ^ sign) - sign));
}

/* Whether `count` entries, each of which takes at least `size` bytes, may follow. */
static int may_hold(struct reader *reader, uint64_t count, size_t size, int depth)
{
    if (depth == DEPTH_MAX)
        refuse(WIRE_TOO_DEEP);
    else if (count > ITEMS_MAX)
        refuse(WIRE_TOO_LONG);
    else if (++reader->containers > CONTAINERS_MAX)
        refuse(WIRE_TOO_MANY);
    else if (count * size > (size_t)(reader->end - reader->at))
        unreadable("it ends in the middle");
    else
        return 1;
    return 0;
}

static PyObject *read_list(struct reader *reader, uint64_t count, int depth)
{
    PyObject *list;

    if (!may_hold(reader, count, 1, depth) || (list = PyList_New((Py_ssize_t)count)) == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < (Py_ssize_t)count; i++) {
        PyObject *item = read_value(reader, depth + 1);
        if (item == NULL || PyList_SetItem(list, i, item) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static int is_text(uint8_t first)
{
    return (first >= 0xa0 && first <= 0xbf) || (first >= 0xd9 && first <= 0xdb);
}

/* One entry of `map`. Returns 0, or -1 with an error. */
static int read_entry(struct reader *reader, PyObject *map, int depth)
{
    PyObject *key, *value = NULL;
    int result = -1;

    if (reader->at < reader->end && !is_text(*reader->at)) {
        refuse(WIRE_KEY_NO_TEXT);
        return -1;
    }
    key = read_value(reader, depth);
    if (key != NULL && (value = read_value(reader, depth)) != NULL)
        result = PyDict_SetItem(map, key, value);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return result;
}

static PyObject *read_map(struct reader *reader, uint64_t count, int depth)
{
    PyObject *map;

    if (!may_hold(reader, count, 2, depth) || (map = PyDict_New()) == NULL)
        return NULL;
    for (uint64_t i = 0; i < count; i++)
        if (read_entry(reader, map, depth + 1) < 0) {
            Py_DECREF(map);
            return NULL;
        }
    if (PyDict_Size(map) != (Py_ssize_t)count) {
        Py_DECREF(map);
        return refuse("a map has a key twice");
    }
    return map;
}

/* The value after one of the bytes from 0xc0 to 0xdf. */
static PyObject *read_long(struct reader *reader, uint8_t first, int depth)
{
    uint64_t number;
    uint32_t bits;
    float narrow;
    double wide;

    switch (first) {
    case 0xc0:
        Py_RETURN_NONE;
    case 0xc2:
        Py_RETURN_FALSE;
    case 0xc3:
        Py_RETURN_TRUE;
    case 0xc4: case 0xc5: case 0xc6:
        if (take_number(reader, (size_t)1 << (first - 0xc4), &number) < 0)
            return NULL;
        return read_bytes(reader, number);
    case 0xca:
        if (take_number(reader, 4, &number) < 0)
            return NULL;
        bits = (uint32_t)number;
        memcpy(&narrow, &bits, sizeof(narrow));
        return read_float(narrow);
    case 0xcb:
        if (take_number(reader, 8, &number) < 0)
            return NULL;
        memcpy(&wide, &number, sizeof(wide));
        return read_float(wide);
    case 0xcc: case 0xcd: case 0xce: case 0xcf:
        if (take_number(reader, (size_t)1 << (first - 0xcc), &number) < 0)
            return NULL;
        return PyLong_FromUnsignedLongLong(number);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3:
        return read_signed(reader, (size_t)1 << (first - 0xd0));
    case 0xd9: case 0xda: case 0xdb:
        if (take_number(reader, (size_t)1 << (first - 0xd9), &number) < 0)
            return NULL;
        return read_text(reader, number);
    case 0xdc: case 0xdd:
        if (take_number(reader, (size_t)2 << (first - 0xdc), &number) < 0)
            return NULL;
        return read_list(reader, number, depth);
    case 0xde: case 0xdf:
        if (take_number(reader, (size_t)2 << (first - 0xde), &number) < 0)
            return NULL;
        return read_map(reader, number, depth);
    default:
        return unreadable("it has an extension type, or a byte that begins no value");
    }
}

/* The next value, which `depth` lists and maps enclose; NULL with an error. */
static PyObject *read_value(struct reader *reader, int depth)
{
    const uint8_t *first = take(reader, 1);

    if (first == NULL)
        return NULL;
    if (*first <= 0x7f)
        return PyLong_FromLong(*first);
    if (*first <= 0x8f)
        return read_map(reader, *first & 0x0f, depth);
    if (*first <= 0x9f)
        return read_list(reader, *first & 0x0f, depth);
    if (*first <= 0xbf)
        return read_text(reader, *first & 0x1f);
    if (*first >= 0xe0)
        return PyLong_FromLong((int8_t)*first);
    return read_long(reader, *first, depth);
}

PyObject *wire_read_payload(const uint8_t *bytes, size_t size)
{
    struct reader reader = {.at = bytes, .end = bytes + size};
    PyObject *message;

    if (size > 0 && (bytes[0] & 0xf0) != 0x90 && (bytes[0] & 0xfe) != 0xdc)
        return unreadable("it is not an array");
    message = read_value(&reader, 0);
    if (message != NULL && reader.at != reader.end) {
        Py_DECREF(message);
        return unreadable("something follows its array");
    }
    return message;
}

/*
 * Bytes of the payload that the header at `bytes` announces; -1 with an error if no frame may have
 * that size. So nothing is ever allocated for it.
 */
static Py_ssize_t payload_size(const uint8_t *bytes)
{
    uint32_t size = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
                    (uint32_t)bytes[3] << 24;

    if (size > FRAME_MAX)
        PyErr_Format(wire_remote_error, "a frame of %u bytes is announced, and %d is the most",
                     (unsigned)size, FRAME_MAX);
    else if (size == 0)
        PyErr_SetString(wire_remote_error, "an empty frame is announced");
    else
        return (Py_ssize_t)size;
    return -1;
}

PyObject *wire_read_frame(const uint8_t *bytes, Py_ssize_t size, Py_ssize_t *at)
{
    Py_ssize_t payload;

    if (*at < 0 || size - *at < HEADER_SIZE)
        return NULL;
    payload = payload_size(bytes + *at);
    if (payload < 0 || size - *at - HEADER_SIZE < payload)
        return NULL;
    bytes += *at + HEADER_SIZE;
    *at += HEADER_SIZE + payload;
    return wire_read_payload(bytes, (size_t)payload);
}
