/*
 * Frames and the MessagePack in them, for Python: this code decides what a peer may send, and
 * builds Python objects from it in the same pass. codec.py describes the format.
 *
 * No value is believed before it is compared with the data: a size with the remaining bytes, a
 * number of entries with the bytes that they need at least and with ITEMS_MAX, all before memory is
 * allocated. What was built of a refused frame is freed at once. Both directions have the same
 * bounds, so what encode() accepts, decode() accepts.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* pedos_protocol.errors: ours for a value that we would send, theirs for one that they have sent.
 * */
static PyObject *local_error, *remote_error;

/* The error of a value, in either direction. */
static const char TOO_DEEP[] = "it is more than 8 lists and maps deep";
static const char TOO_LONG[] = "a list or map has more than 1024 entries";
static const char TOO_MANY[] = "it has more than 6144 lists and maps";
static const char KEY_NO_TEXT[] = "a key of a map is not text";
static const char NOT_FINITE[] = "a number is not finite";
_Static_assert(DEPTH_MAX == 8 && ITEMS_MAX == 1024 && CONTAINERS_MAX == 6144, "as said above");

/* --- reading --- */

struct reader {
    const uint8_t *at, *end;
    unsigned containers;
};

static PyObject *refuse(const char *why)
{
    PyErr_Format(remote_error, "a frame cannot be accepted: %s", why);
    return NULL;
}

static PyObject *unreadable(const char *why)
{
    PyErr_Format(remote_error, "a frame is not readable MessagePack: %s", why);
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
    return isfinite(number) ? PyFloat_FromDouble(number) : refuse(NOT_FINITE);
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
        refuse(TOO_DEEP);
    else if (count > ITEMS_MAX)
        refuse(TOO_LONG);
    else if (++reader->containers > CONTAINERS_MAX)
        refuse(TOO_MANY);
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
        refuse(KEY_NO_TEXT);
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
    float single;
    double twice;

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
        memcpy(&single, &bits, sizeof(single));
        return read_float(single);
    case 0xcb:
        if (take_number(reader, 8, &number) < 0)
            return NULL;
        memcpy(&twice, &number, sizeof(twice));
        return read_float(twice);
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

/* The array that a payload is; NULL with an error. */
static PyObject *read_payload(const uint8_t *bytes, size_t size)
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

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *payload)
{
    PyObject *message = NULL;
    Py_buffer buffer;

    if (PyObject_GetBuffer(payload, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    if (buffer.len > FRAME_MAX)
        PyErr_Format(remote_error, "a payload has %zd bytes, and %d is the most", buffer.len,
                     FRAME_MAX);
    else
        message = read_payload(buffer.buf, (size_t)buffer.len);
    PyBuffer_Release(&buffer);
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
        PyErr_Format(remote_error, "a frame of %u bytes is announced, and %d is the most",
                     (unsigned)size, FRAME_MAX);
    else if (size == 0)
        PyErr_SetString(remote_error, "an empty frame is announced");
    else
        return (Py_ssize_t)size;
    return -1;
}

static PyObject *read_frame(const uint8_t *bytes, Py_ssize_t size, Py_ssize_t at)
{
    PyObject *message;
    Py_ssize_t payload;

    if (at < 0 || size - at < HEADER_SIZE)
        Py_RETURN_NONE;
    payload = payload_size(bytes + at);
    if (payload < 0)
        return NULL;
    at += HEADER_SIZE;
    if (size - at < payload)
        Py_RETURN_NONE;
    message = read_payload(bytes + at, (size_t)payload);
    return message == NULL ? NULL : Py_BuildValue("Nn", message, at + payload);
}

static PyObject *next_message(PyObject *Py_UNUSED(module), PyObject *const *arguments,
                              Py_ssize_t count)
{
    PyObject *found;
    Py_buffer buffer;
    Py_ssize_t at;

    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "a buffer and a place in it are expected");
        return NULL;
    }
    at = PyLong_AsSsize_t(arguments[1]);
    if ((at == -1 && PyErr_Occurred()) || PyObject_GetBuffer(arguments[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    found = read_frame(buffer.buf, buffer.len, at);
    PyBuffer_Release(&buffer);
    return found;
}

/* --- writing --- */

struct writer {
    size_t size; /* of the payload, also of parts that did not fit */
    unsigned containers;
    uint8_t frame[HEADER_SIZE + FRAME_MAX];
};

/* The writing functions return 0, or -1 with an error. */
static int unsayable(const char *why)
{
    PyErr_Format(local_error, "this message cannot be sent: %s", why);
    return -1;
}

static void put(struct writer *writer, const void *bytes, size_t size)
{
    if (size <= FRAME_MAX && writer->size <= FRAME_MAX - size)
        memcpy(writer->frame + HEADER_SIZE + writer->size, bytes, size);
    writer->size += size;
}

static void put_byte(struct writer *writer, uint8_t byte)
{
    put(writer, &byte, 1);
}

/* `first`, and `number` in `size` bytes behind it. */
static void put_number(struct writer *writer, uint8_t first, uint64_t number, size_t size)
{
    uint8_t bytes[9] = {first};

    for (size_t i = size; i > 0; i--) {
        bytes[i] = (uint8_t)number;
        number >>= 8;
    }
    put(writer, bytes, size + 1);
}

/* Like `first`, `first + 1` and so on, in the fewest bytes: 1, 2, 4 or 8. */
static void put_shortest(struct writer *writer, uint8_t first, uint64_t number)
{
    unsigned power = number <= UINT8_MAX ? 0 : number <= UINT16_MAX ? 1 : number <= UINT32_MAX ? 2 : 3;

    put_number(writer, (uint8_t)(first + power), number, (size_t)1 << power);
}

static void put_signed(struct writer *writer, int64_t number)
{
    if (number >= 0 && number < 0x80)
        put_byte(writer, (uint8_t)number);
    else if (number >= 0)
        put_shortest(writer, 0xcc, (uint64_t)number);
    else if (number >= -32)
        put_byte(writer, (uint8_t)number);
    else if (number >= INT8_MIN)
        put_number(writer, 0xd0, (uint64_t)number, 1);
    else if (number >= INT16_MIN)
        put_number(writer, 0xd1, (uint64_t)number, 2);
    else if (number >= INT32_MIN)
        put_number(writer, 0xd2, (uint64_t)number, 4);
    else
        put_number(writer, 0xd3, (uint64_t)number, 8);
}

static int write_integer(struct writer *writer, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);

    if (overflow == 0) {
        put_signed(writer, number);
        return 0;
    }
    if (overflow > 0) {
        unsigned long long large = PyLong_AsUnsignedLongLong(value);
        if (!PyErr_Occurred()) {
            put_number(writer, 0xcf, large, 8);
            return 0;
        }
        PyErr_Clear();
    }
    return unsayable("an integer has more than 64 bits");
}

static int write_float(struct writer *writer, PyObject *value)
{
    double number = PyFloat_AsDouble(value);
    uint64_t bits;

    if (!isfinite(number))
        return unsayable(NOT_FINITE);
    memcpy(&bits, &number, sizeof(bits));
    put_number(writer, 0xcb, bits, 8);
    return 0;
}

static int write_text(struct writer *writer, PyObject *value)
{
    Py_ssize_t size;
    const char *bytes = PyUnicode_AsUTF8AndSize(value, &size);

    if (bytes == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
            return -1;
        PyErr_Clear();
        return unsayable("a text is not Unicode");
    }
    if (size < 32)
        put_byte(writer, (uint8_t)(0xa0 | size));
    else
        put_shortest(writer, 0xd9, (uint64_t)size);
    put(writer, bytes, (size_t)size);
    return 0;
}

static int write_bytes(struct writer *writer, PyObject *value)
{
    Py_ssize_t size;
    char *bytes;

    if (PyBytes_AsStringAndSize(value, &bytes, &size) < 0)
        return -1;
    put_shortest(writer, 0xc4, (uint64_t)size);
    put(writer, bytes, (size_t)size);
    return 0;
}

/* The header of a list or map of so many entries: `brief` with the count in it, or `first`. */
static int write_count(struct writer *writer, Py_ssize_t count, int depth, uint8_t brief,
                       uint8_t first)
{
    if (depth == DEPTH_MAX)
        return unsayable(TOO_DEEP);
    if (count > ITEMS_MAX)
        return unsayable(TOO_LONG);
    if (++writer->containers > CONTAINERS_MAX)
        return unsayable(TOO_MANY);
    if (count < 16)
        put_byte(writer, (uint8_t)(brief | count));
    else
        put_number(writer, first, (uint64_t)count, 2);
    return 0;
}

static int write_value(struct writer *writer, PyObject *value, int depth);

static int write_list(struct writer *writer, PyObject *list, int depth)
{
    Py_ssize_t count = PyList_Size(list);

    if (write_count(writer, count, depth, 0x90, 0xdc) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < count; i++)
        if (write_value(writer, PyList_GetItem(list, i), depth + 1) < 0)
            return -1;
    return 0;
}

static int write_map(struct writer *writer, PyObject *map, int depth)
{
    PyObject *key, *value;
    Py_ssize_t place = 0;

    if (write_count(writer, PyDict_Size(map), depth, 0x80, 0xde) < 0)
        return -1;
    while (PyDict_Next(map, &place, &key, &value)) {
        if (!PyUnicode_CheckExact(key))
            return unsayable(KEY_NO_TEXT);
        if (write_text(writer, key) < 0 || write_value(writer, value, depth + 1) < 0)
            return -1;
    }
    return 0;
}

/* Raises the error that this type cannot be sent: `format` has a place for its name. */
static int wrong_type(const char *format, PyObject *value)
{
    PyObject *name = PyType_GetName(Py_TYPE(value));

    if (name != NULL) {
        PyErr_Format(local_error, format, name);
        Py_DECREF(name);
    }
    return -1;
}

/* Exact types alone: what is written is what is read. No Python code runs in here. */
static int write_value(struct writer *writer, PyObject *value, int depth)
{
    if (PyUnicode_CheckExact(value))
        return write_text(writer, value);
    if (PyDict_CheckExact(value))
        return write_map(writer, value, depth);
    if (PyLong_CheckExact(value))
        return write_integer(writer, value);
    if (value == Py_None)
        put_byte(writer, 0xc0);
    else if (value == Py_False)
        put_byte(writer, 0xc2);
    else if (value == Py_True)
        put_byte(writer, 0xc3);
    else if (PyList_CheckExact(value))
        return write_list(writer, value, depth);
    else if (PyBytes_CheckExact(value))
        return write_bytes(writer, value);
    else if (PyFloat_CheckExact(value))
        return write_float(writer, value);
    else
        return wrong_type("this message cannot be sent: a value is a %U, which is not sent", value);
    return 0;
}

static PyObject *encode(PyObject *Py_UNUSED(module), PyObject *message)
{
    struct writer writer; /* its frame is not zeroed: only what is written is sent */

    writer.size = writer.containers = 0;
    if (!PyList_CheckExact(message)) {
        wrong_type("a message is a list, not a %U", message);
        return NULL;
    }
    if (write_list(&writer, message, 0) < 0)
        return NULL;
    if (writer.size > FRAME_MAX) {
        PyErr_Format(local_error,
                     "this message cannot be sent: it has %zu bytes, and %d is the most",
                     writer.size, FRAME_MAX);
        return NULL;
    }
    for (int i = 0; i < HEADER_SIZE; i++)
        writer.frame[i] = (uint8_t)(writer.size >> (8 * i));
    return PyBytes_FromStringAndSize((const char *)writer.frame,
                                     (Py_ssize_t)(HEADER_SIZE + writer.size));
}

/* --- the module --- */

static PyMethodDef functions[] = {
    {"encode", encode, METH_O, NULL},
    {"decode", decode, METH_O, NULL},
    {"next_message", (PyCFunction)(void (*)(void))next_message, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "pedos_protocol._wire", NULL, -1, functions, NULL, NULL, NULL, NULL};

static int fill(PyObject *module)
{
    PyObject *errors = PyImport_ImportModule("pedos_protocol.errors");

    if (errors == NULL)
        return -1;
    local_error = PyObject_GetAttrString(errors, "LocalProtocolError");
    remote_error = PyObject_GetAttrString(errors, "RemoteProtocolError");
    Py_DECREF(errors);
    if (local_error == NULL || remote_error == NULL ||
        PyModule_AddIntMacro(module, HEADER_SIZE) < 0 ||
        PyModule_AddIntMacro(module, FRAME_MAX) < 0 ||
        PyModule_AddIntMacro(module, DEPTH_MAX) < 0 ||
        PyModule_AddIntMacro(module, ITEMS_MAX) < 0 ||
        PyModule_AddIntMacro(module, CONTAINERS_MAX) < 0)
        return -1;
    return 0;
}

PyMODINIT_FUNC PyInit__wire(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module != NULL && fill(module) < 0)
        Py_CLEAR(module);
    return module;
}
