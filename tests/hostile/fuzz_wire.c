/*
 * What libFuzzer throws at the reading of frames (native/wire): any payload is an event, a list or
 * an error of the protocol, and what is accepted can be said again and is then heard as the same. A
 * connection hears the same in it, whole or in pieces. As a datagram of a program that calls a
 * service, or of its agent, it is a message that is said by the same bytes, or an error.
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

/* All that a connection makes of bytes that come in three pieces, and of the end behind them. */
static const char outcome_source[] =
    "from pedos_protocol.connection import Connection\n"
    "from pedos_protocol.errors import RemoteProtocolError\n"
    "from pedos_protocol.events import Hello, Notice, Request\n"
    "def outcome(frame, cut):\n"
    "    end, heard = Connection(), []\n"
    "    list(end.receive_data(end.send(Hello((1, 1), 'fuzz'))))\n"
    "    end.send(Request(0, 'a', {}, 1))\n"
    "    data = end.send(Notice('other', {})) + frame + frame\n"
    "    cut = cut * len(data) // 256\n"
    "    try:\n"
    "        for piece in data[:cut // 2], data[cut // 2:cut], data[cut:]:\n"
    "            heard += end.receive_data(piece) if piece else ()\n"
    "        heard += end.receive_data(b'')\n"
    "    except RemoteProtocolError as error:\n"
    "        heard.append(str(error))\n"
    "        assert end.their_state == 'ERROR'\n"
    "    return heard, end.ours_in_flight, end.theirs_in_flight\n"
    "from pedos_protocol import call_link\n"
    "def is_datagram(untrusted):\n"
    "    for sender in call_link.AGENT, call_link.PROGRAM:\n"
    "        try:\n"
    "            message = call_link.parse(untrusted, sender)\n"
    "        except RemoteProtocolError:\n"
    "            continue\n"
    "        assert call_link.build(message) == untrusted\n";

static PyObject *outcome, *is_datagram;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyObject *module, *code, *names = NULL;

    (void)argc;
    (void)argv;
    setenv("PYTHONMALLOC", "malloc", 1);
    setenv("PYTHONPATH", PROTOCOL, 1);
    setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
    Py_InitializeEx(0);
    module = PyInit__wire();
    promise(module != NULL, "the module comes up");
    PyDict_SetItemString(PyImport_GetModuleDict(), "pedos_protocol._wire", module);
    code = Py_CompileString(outcome_source, "outcome", Py_file_input);
    names = PyDict_New();
    promise(code != NULL && PyEval_EvalCode(code, names, names) != NULL, "so does the connection");
    outcome = PyDict_GetItemString(names, "outcome");
    is_datagram = PyDict_GetItemString(names, "is_datagram");
    return 0;
}

/* What the frame in these bytes says; NULL with an error. */
static PyObject *heard(const char *bytes, Py_ssize_t length)
{
    Py_ssize_t at = 0;
    PyObject *message = wire_read_frame((const uint8_t *)bytes, length, &at), *event;

    if (message == NULL) {
        promise(PyErr_Occurred() != NULL, "a whole frame is found");
        return NULL;
    }
    promise(at == length, "a frame ends where it ends");
    event = wire_event_of(message);
    Py_DECREF(message);
    return event;
}

/* A connection hears the same in another frame and this one twice, whole or in pieces. */
static void heard_in_pieces(const char *bytes, Py_ssize_t length)
{
    PyObject *frame = PyBytes_FromStringAndSize(bytes, length);
    PyObject *whole = PyObject_CallFunction(outcome, "Oi", frame, 0), *pieces;

    promise(whole != NULL, "a connection hears events, or one error of the protocol");
    pieces = PyObject_CallFunction(outcome, "Oi", frame, (unsigned char)bytes[length / 2]);
    promise(pieces != NULL, "it does in pieces");
    promise(PyObject_RichCompareBool(whole, pieces, Py_EQ) == 1, "pieces are heard as the whole is");
    Py_DECREF(pieces);
    Py_DECREF(whole);
    Py_DECREF(frame);
}

/* As a datagram it is a message or the one error, and nothing behind its end is looked at. */
static void read_as_datagram(char *bytes, Py_ssize_t length)
{
    PyObject *untrusted = PyMemoryView_FromMemory(bytes, length, PyBUF_READ);
    PyObject *done = PyObject_CallFunctionObjArgs(is_datagram, untrusted, NULL);

    promise(done != NULL, "a datagram is a message of these bytes, or an error of the protocol");
    Py_DECREF(done);
    Py_DECREF(untrusted);
}

static void said_again(PyObject *event)
{
    PyObject *frame, *again;

    frame = PyList_CheckExact(event) ? encode(NULL, event) : wire_frame_of(event);
    promise(frame != NULL && frame != Py_None, "what was heard can be said");
    again = heard(PyBytes_AsString(frame), PyBytes_Size(frame));
    promise(again != NULL, "what was said can be heard");
    promise(PyObject_RichCompareBool(again, event, Py_EQ) == 1, "it is heard as it was said");
    Py_DECREF(again);
    Py_DECREF(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Py_ssize_t length = (Py_ssize_t)(HEADER_SIZE + size);
    char *bytes = malloc((size_t)length); /* nothing but the sanitizer's fence behind it */
    PyObject *event;

    for (int i = 0; i < HEADER_SIZE; i++)
        bytes[i] = (char)(size >> (8 * i));
    memcpy(bytes + HEADER_SIZE, data, size);
    event = heard(bytes, length);
    if (event != NULL)
        said_again(event);
    else
        promise(PyErr_ExceptionMatches(wire_remote_error) ||
                    PyErr_ExceptionMatches(wire_local_error),
                "what is refused is an error of the protocol");
    PyErr_Clear();
    Py_XDECREF(event);
    if (bytes[length - 1] % 8 == 0) /* Python takes ten times as long as all else */
        heard_in_pieces(bytes, length);
    if (bytes[length - 1] % 8 == 1)
        read_as_datagram(bytes + HEADER_SIZE, length - HEADER_SIZE);
    free(bytes);
    return 0;
}
