/*
 * What libFuzzer throws at the reading of frames (native/wire): any bytes are a message or a
 * RemoteProtocolError, and what is accepted can be said again and is then read as the same.
 *
 * Python runs in here with plain malloc, so that the sanitizer sees each step over an end.
 */
#include "wire.c"

#include <stdio.h>
#include <stdlib.h>

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
    (void)argc;
    (void)argv;
    setenv("PYTHONMALLOC", "malloc", 1);
    Py_InitializeEx(0);
    local_error = PyErr_NewException("fuzz.LocalProtocolError", NULL, NULL);
    remote_error = PyErr_NewException("fuzz.RemoteProtocolError", NULL, NULL);
    return local_error == NULL || remote_error == NULL;
}

static void said_again(PyObject *message)
{
    PyObject *frame = encode(NULL, message), *again;
    char *bytes;
    Py_ssize_t size;

    promise(frame != NULL, "what was read can be said");
    promise(PyBytes_AsStringAndSize(frame, &bytes, &size) == 0, "a frame is bytes");
    again = read_frame((const uint8_t *)bytes, size, 0);
    promise(again != NULL && again != Py_None, "what was said can be read");
    promise(PyObject_RichCompareBool(PyTuple_GetItem(again, 0), message, Py_EQ) == 1,
            "it is read as it was said");
    promise(PyLong_AsSsize_t(PyTuple_GetItem(again, 1)) == size, "a frame ends where it ends");
    Py_DECREF(again);
    Py_DECREF(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *payload = malloc(size > 0 ? size : 1); /* nothing but the sanitizer's fence behind */
    PyObject *message;

    memcpy(payload, data, size);
    message = read_payload(payload, size);
    free(payload);
    if (message != NULL)
        said_again(message);
    else
        promise(PyErr_ExceptionMatches(remote_error), "what is refused is the peer's error");
    PyErr_Clear();
    Py_XDECREF(message);
    return 0;
}
