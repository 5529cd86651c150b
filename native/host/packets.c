/*
 * Connections of whole messages (pedos_host.packets), in as few calls of the interpreter as they have
 * steps: an agent accepts one for each call of a service, and ends it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

/* The descriptor that is the only argument; -1 with an exception. */
static int descriptor(PyObject *argument)
{
    long number = PyLong_AsLong(argument);

    if (number == -1 && PyErr_Occurred())
        return -1;
    if (number < 0 || number > INT_MAX) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return (int)number;
}

static PyObject *accept_now(PyObject *module, PyObject *listener)
{
    int fd = descriptor(listener), accepted;

    (void)module;
    if (fd < 0)
        return NULL;
    do
        accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    while (accepted < 0 && errno == EINTR);
    if (accepted < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromLong(accepted);
}

/* Is there no message any more in what was shut down? */
static bool is_empty(int fd)
{
    int type = 0, yes = 1;
    socklen_t size = sizeof type;
    char byte;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size))
        return false;
    /* With this, the flags tell an empty message from the end. */
    if (type == SOCK_SEQPACKET && setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes))
        return false;
    return !recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT) && !(message.msg_flags & MSG_CTRUNC);
}

static PyObject *hang_up(PyObject *module, PyObject *arguments)
{
    const char *last = NULL;
    Py_ssize_t length = 0;
    int fd;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "i|y#:hang_up", &fd, &last, &length))
        return NULL;
    if (length) /* it fails if the other end has gone, or hears of nothing any more */
        (void)send(fd, last, (size_t)length, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(fd, SHUT_RDWR); /* nothing can be passed from now on; it fails if the end has come */
    if (!is_empty(fd))
        Py_RETURN_FALSE;
    close(fd);
    Py_RETURN_TRUE;
}

static PyMethodDef functions[] = {
    {"accept_now", accept_now, METH_O, NULL},
    {"hang_up", hang_up, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._packets", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__packets(void) { return PyModule_Create(&definition); }
