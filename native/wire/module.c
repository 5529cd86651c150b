/* The module pedos_protocol._wire. */
#include "wire.h"

PyObject *wire_local_error, *wire_remote_error;

static PyObject *encode(PyObject *Py_UNUSED(module), PyObject *message)
{
    struct wire_writer writer;

    if (!PyList_CheckExact(message)) {
        wire_wrong_type("a message is a list, not a %U", message);
        return NULL;
    }
    wire_begin(&writer);
    return wire_write_value(&writer, message, 0) < 0 ? NULL : wire_finish(&writer);
}

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *payload)
{
    PyObject *message = NULL;
    Py_buffer buffer;

    if (PyObject_GetBuffer(payload, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    if (buffer.len > FRAME_MAX)
        PyErr_Format(wire_remote_error, "a payload has %zd bytes, and %d is the most", buffer.len,
                     FRAME_MAX);
    else
        message = wire_read_payload(buffer.buf, (size_t)buffer.len);
    PyBuffer_Release(&buffer);
    return message;
}

static PyMethodDef functions[] = {
    {"encode", encode, METH_O, NULL},
    {"decode", decode, METH_O, NULL},
    {"make_classes", wire_make_classes, METH_VARARGS, NULL},
    {"introduce", wire_introduce, METH_VARARGS, NULL},
    {"check_id", wire_check_id, METH_O, NULL},
    {"take_list", wire_take_list, METH_VARARGS, NULL},
    {"take_map", wire_take_map, METH_VARARGS, NULL},
    {"read_packet", wire_read_packet, METH_VARARGS, NULL},
    {"write_packet", wire_write_packet, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "pedos_protocol._wire", NULL, -1, functions, NULL, NULL, NULL, NULL};

int wire_make_names(const struct wire_name *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if ((*names[i].text = PyUnicode_InternFromString(names[i].characters)) == NULL)
            return -1;
    return 0;
}

#define NUMBER(name) {#name, name}

/* What Python reads of wire.h. */
static const struct {
    const char *name;
    long long value; /* a long may have 32 bits */
} numbers[] = {
    NUMBER(HEADER_SIZE),
    NUMBER(FRAME_MAX),
    NUMBER(DEPTH_MAX),
    NUMBER(ITEMS_MAX),
    NUMBER(CONTAINERS_MAX),
    NUMBER(DEADLINE_MS_MAX),
    NUMBER(PENDING_MAX),
    NUMBER(ID_MAX),
    NUMBER(DATAGRAM_MAX),
    NUMBER(REQUEST),
    NUMBER(RESPONSE),
    NUMBER(NOTICE),
    NUMBER(OUT_OF_TURN),
    NUMBER(ID_IN_USE),
    NUMBER(TOO_MANY_PENDING),
    NUMBER(NO_REQUEST),
};

/* These return 0, or -1 with an error. */
static int add_number(PyObject *module, const char *name, long long value)
{
    PyObject *number = PyLong_FromLongLong(value);
    int result = PyModule_AddObjectRef(module, name, number);

    Py_XDECREF(number);
    return result;
}

static int fill(PyObject *module)
{
    PyObject *errors = PyImport_ImportModule("pedos_protocol.errors");

    if (errors == NULL)
        return -1;
    wire_local_error = PyObject_GetAttrString(errors, "LocalProtocolError");
    wire_remote_error = PyObject_GetAttrString(errors, "RemoteProtocolError");
    Py_DECREF(errors);
    if (wire_local_error == NULL || wire_remote_error == NULL || wire_values_ready() < 0 ||
        wire_turn_ready() < 0 || wire_connection_ready(module) < 0 ||
        wire_forms_ready(module) < 0)
        return -1;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        if (add_number(module, numbers[i].name, numbers[i].value) < 0)
            return -1;
    if (PyModule_AddStringMacro(module, HELLO) < 0 || PyModule_AddStringMacro(module, START) < 0)
        return -1;
    return PyModule_AddStringMacro(module, ERROR);
}

PyMODINIT_FUNC PyInit__wire(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module != NULL && fill(module) < 0)
        Py_CLEAR(module);
    return module;
}
