/*
 * What libFuzzer throws at the reading of frames (native/wire): any payload is an event, a list or
 * an error of the protocol, and what is accepted can be said again and is then heard as the same.
 *
 * Python runs in here with plain malloc, so that the sanitizer sees each step over an end. PROTOCOL
 * is the folder of pedos_protocol.
 */
#include "module.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void promise(int kept, const char *what)
{
    if (!kept) {
        fprintf(stderr, "broken promise: %s\n", what);
        PyErr_Print();
        abort();
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyObject *module;

    (void)argc;
    (void)argv;
    setenv("PYTHONMALLOC", "malloc", 1);
    setenv("PYTHONPATH", PROTOCOL, 1);
    setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
    Py_InitializeEx(0);
    module = PyInit__wire();
    promise(module != NULL, "the module comes up");
    PyDict_SetItemString(PyImport_GetModuleDict(), "pedos_protocol._wire", module);
    promise(PyImport_ImportModule("pedos_protocol.events") != NULL, "so do the events");
    return 0;
}

/* What the frame in `buffer` says; NULL with an error. */
static PyObject *heard(PyObject *buffer)
{
    PyObject *arguments[] = {buffer, PyLong_FromLong(0)}, *found, *event;

    found = wire_next_event(NULL, arguments, 2);
    Py_DECREF(arguments[1]);
    if (found == NULL)
        return NULL;
    promise(found != Py_None, "a whole frame is found");
    promise(PyLong_AsSsize_t(PyTuple_GetItem(found, 1)) == PyObject_Size(buffer),
            "a frame ends where it ends");
    event = PyTuple_GetItem(found, 0);
    Py_INCREF(event);
    Py_DECREF(found);
    return event;
}

static void said_again(PyObject *event)
{
    PyObject *frame, *again;

    frame = PyList_CheckExact(event) ? encode(NULL, event) : wire_frame_of(NULL, event);
    promise(frame != NULL && frame != Py_None, "what was heard can be said");
    again = heard(frame);
    promise(again != NULL, "what was said can be heard");
    promise(PyObject_RichCompareBool(again, event, Py_EQ) == 1, "it is heard as it was said");
    Py_DECREF(again);
    Py_DECREF(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Py_ssize_t length = (Py_ssize_t)(HEADER_SIZE + size);
    char *bytes = malloc((size_t)length); /* nothing but the sanitizer's fence behind it */
    PyObject *buffer, *event;

    for (int i = 0; i < HEADER_SIZE; i++)
        bytes[i] = (char)(size >> (8 * i));
    memcpy(bytes + HEADER_SIZE, data, size);
    buffer = PyMemoryView_FromMemory(bytes, length, PyBUF_READ);
    event = heard(buffer);
    Py_DECREF(buffer);
    free(bytes);
    if (event != NULL)
        said_again(event);
    else
        promise(PyErr_ExceptionMatches(wire_remote_error) ||
                    PyErr_ExceptionMatches(wire_local_error),
                "what is refused is an error of the protocol");
    PyErr_Clear();
    Py_XDECREF(event);
    return 0;
}
