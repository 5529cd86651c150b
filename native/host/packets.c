/*
 * Connections of whole messages (pedos_host.packets), in as few calls of the interpreter as they have
 * steps: an agent accepts one for each call of a service, and ends it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Descriptors that the kernel passes with one message (SCM_MAX_FD). With less room than for these it
 * would close what is more here and now, which may wait. */
#define PASSED_MAX 253

union control {
    char bytes[CMSG_SPACE(PASSED_MAX * sizeof(int))];
    struct cmsghdr aligned;
};

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
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t size = sizeof peer;
    int fd = descriptor(listener), accepted;

    (void)module;
    if (fd < 0)
        return NULL;
    do
        accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    while (accepted < 0 && errno == EINTR);
    if (accepted < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &peer, &size)) {
        PyErr_SetFromErrno(PyExc_OSError);
        close(accepted);
        return NULL;
    }
    return Py_BuildValue("(iI)", accepted, peer.uid);
}

/* Adds the descriptors that have come to the list; false with an exception. */
static bool add_passed(PyObject *list, struct msghdr *message)
{
    for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each)) {
        if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + CMSG_LEN(sizeof(int)) <= each->cmsg_len; at += sizeof(int)) {
            PyObject *number;
            int fd;

            memcpy(&fd, CMSG_DATA(each) + at, sizeof fd);
            number = PyLong_FromLong(fd);
            if (!number || PyList_Append(list, number)) {
                Py_XDECREF(number);
                return false;
            }
            Py_DECREF(number);
        }
    }
    return true;
}

static PyObject *receive(PyObject *module, PyObject *arguments)
{
    PyObject *bytes, *list, *made = NULL;
    union control control;
    struct iovec part;
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    Py_ssize_t limit;
    ssize_t length;
    int fd;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "in:receive", &fd, &limit))
        return NULL;
    bytes = PyBytes_FromStringAndSize(NULL, limit);
    list = PyList_New(0);
    if (bytes && list) {
        part = (struct iovec){.iov_base = PyBytes_AsString(bytes), .iov_len = (size_t)limit};
        do
            length = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        while (length < 0 && errno == EINTR);
        if (length < 0)
            PyErr_SetFromErrno(PyExc_OSError);
        else if (add_passed(list, &message))
            made = Py_BuildValue("(y#O)", PyBytes_AsString(bytes), (Py_ssize_t)length, list);
    }
    Py_XDECREF(bytes);
    Py_XDECREF(list);
    return made;
}

/* Has the message pass these descriptors; false with an exception. */
static bool pass(struct msghdr *message, union control *control, PyObject *descriptors)
{
    Py_ssize_t count = PySequence_Size(descriptors);
    struct cmsghdr *rights;

    if (count > PASSED_MAX)
        PyErr_SetString(PyExc_ValueError, "more descriptors than can be passed");
    if (count < 0 || count > PASSED_MAX)
        return false;
    if (!count)
        return true;
    memset(control, 0, sizeof *control);
    message->msg_control = control->bytes;
    message->msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    rights = CMSG_FIRSTHDR(message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *each = PySequence_GetItem(descriptors, at);
        int fd = each ? descriptor(each) : -1;

        Py_XDECREF(each);
        if (fd < 0)
            return false;
        memcpy(CMSG_DATA(rights) + (size_t)at * sizeof fd, &fd, sizeof fd);
    }
    return true;
}

static PyObject *send_now(PyObject *module, PyObject *arguments)
{
    union control control;
    struct iovec part;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    PyObject *descriptors;
    const char *bytes;
    Py_ssize_t length;
    ssize_t sent;
    int fd;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "iy#O:send", &fd, &bytes, &length, &descriptors) ||
        !pass(&message, &control, descriptors))
        return NULL;
    part = (struct iovec){.iov_base = (void *)(uintptr_t)bytes, .iov_len = (size_t)length};
    do
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
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
    {"receive", receive, METH_VARARGS, NULL},
    {"send", send_now, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._packets", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__packets(void) { return PyModule_Create(&definition); }
