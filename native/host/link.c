/*
 * Connections of whole messages for threads that each serve one (SOCK_SEQPACKET), as a keeper has
 * them. Python's own sockets give the interpreter's lock away at every step, and where many calls
 * begin at once each step then waits for it again. Here only what may wait gives it away: not what
 * takes a message that is there, or sends one into a socket with room.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* Bytes of the longest message that can be asked for. */
#define MESSAGE_MAX 8192
/* Descriptors that can come with a message: one more than a call has, so that too many are seen. The
 * kernel closes what is beyond that. */
#define PASSED_MAX 4

static PyObject *accept_from(PyObject *module, PyObject *arguments)
{
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t size = sizeof peer;
    int listener, fd, error = 0;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "i:accept", &listener))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    do
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        error = errno;
        if (fd >= 0)
            close(fd);
    }
    Py_END_ALLOW_THREADS
    errno = error;
    return error ? PyErr_SetFromErrno(PyExc_OSError) : Py_BuildValue("(iI)", fd, peer.uid);
}

/* A message that is there, and the descriptors that came with it. Its length, or -errno. */
static ssize_t take(int fd, char *into, size_t size, int *passed, int *count)
{
    union {
        char bytes[CMSG_SPACE(PASSED_MAX * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {.iov_base = into, .iov_len = size};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t length;

    do
        length = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (length < 0 && errno == EINTR);
    if (length < 0)
        return -errno;
    *count = 0;
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each)) {
        if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
            continue;
        *count = (int)((each->cmsg_len - CMSG_LEN(0)) / sizeof *passed);
        memcpy(passed, CMSG_DATA(each), (size_t)*count * sizeof *passed);
    }
    return length;
}

/* It may wait for whoever has passed them. */
static void close_passed(const int *passed, int count)
{
    while (count)
        close(passed[--count]);
}

/* The numbers as a list. */
static PyObject *list_of(const int *numbers, int count)
{
    PyObject *list = PyList_New(count);

    for (int i = 0; list && i < count; i++) {
        PyObject *number = PyLong_FromLong(numbers[i]);

        if (number == NULL || PyList_SetItem(list, i, number) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* Whether something has come, or the end, within that time. */
static bool waits_for(int fd, int milliseconds)
{
    struct pollfd fds = {.fd = fd, .events = POLLIN};
    int ready;

    Py_BEGIN_ALLOW_THREADS
    do
        ready = poll(&fds, 1, milliseconds);
    while (ready < 0 && errno == EINTR);
    Py_END_ALLOW_THREADS
    return ready > 0;
}

static PyObject *first(PyObject *module, PyObject *arguments)
{
    int fd, milliseconds, count = 0, passed[PASSED_MAX];
    char message[MESSAGE_MAX];
    PyObject *list = NULL, *made = NULL;
    Py_ssize_t limit;
    ssize_t length;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "ini:first", &fd, &limit, &milliseconds))
        return NULL;
    if (limit < 0 || limit > MESSAGE_MAX) {
        PyErr_SetString(PyExc_ValueError, "a limit that no message has");
        return NULL;
    }
    length = take(fd, message, (size_t)limit, passed, &count); /* it is nearly always there */
    if (length == -EAGAIN && waits_for(fd, milliseconds))
        length = take(fd, message, (size_t)limit, passed, &count);
    if (length < 0) {
        errno = (int)-length;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    list = list_of(passed, count);
    if (list)
        made = Py_BuildValue("(y#O)", message, (Py_ssize_t)length, list);
    Py_XDECREF(list);
    if (made == NULL)
        close_passed(passed, count);
    return made;
}

/* The descriptors that come with a message are of no use here: without room for them the kernel
 * closes them, which may wait. */
static PyObject *attend(PyObject *module, PyObject *arguments)
{
    char message[MESSAGE_MAX];
    struct pollfd fds[2];
    Py_ssize_t limit;
    ssize_t length = -1;
    int fd, process, error = 0;
    bool has_ended;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "iin:attend", &fd, &process, &limit))
        return NULL;
    if (limit < 0 || limit > MESSAGE_MAX) {
        PyErr_SetString(PyExc_ValueError, "a limit that no message has");
        return NULL;
    }
    fds[0] = (struct pollfd){.fd = fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = process, .events = POLLIN};
    Py_BEGIN_ALLOW_THREADS
    do {
        while (process >= 0 && poll(fds, 2, -1) < 0 && errno == EINTR)
            ;
        has_ended = process >= 0 && fds[1].revents;
        if (process < 0 || fds[0].revents) {
            length = recv(fd, message, (size_t)limit, process < 0 ? 0 : MSG_DONTWAIT);
            error = length < 0 && errno != EAGAIN && errno != EINTR ? errno : 0;
        }
    } while (!has_ended && length < 0 && !error);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (length < 0)
        return Py_BuildValue("(NO)", PyBool_FromLong(has_ended), Py_None);
    return Py_BuildValue("(Ny#)", PyBool_FromLong(has_ended), message, (Py_ssize_t)length);
}

static PyObject *send_now(PyObject *module, PyObject *arguments)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec part;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    const char *bytes;
    Py_ssize_t length;
    int fd, passed = -1;
    ssize_t sent;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "iy#|i:send", &fd, &bytes, &length, &passed))
        return NULL;
    part = (struct iovec){.iov_base = (void *)(uintptr_t)bytes, .iov_len = (size_t)length};
    if (passed >= 0) {
        struct cmsghdr *rights;

        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof passed);
        memcpy(CMSG_DATA(rights), &passed, sizeof passed);
    }
    do
        sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* 0, or -1: the kernel's time-out for what a socket sends, and for a connection to a Unix socket whose
 * backlog is full. */
static int set_timeout(int fd, int milliseconds)
{
    struct timeval time = {.tv_sec = milliseconds / 1000,
                           .tv_usec = milliseconds % 1000 * 1000};

    return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

static int send_all(int fd, const char *bytes, Py_ssize_t length)
{
    while (length) {
        ssize_t sent = send(fd, bytes, (size_t)length, MSG_NOSIGNAL);

        if (sent < 0)
            return -1;
        bytes += sent;
        length -= sent;
    }
    return 0;
}

static PyObject *connect_to(PyObject *module, PyObject *arguments)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path, *before;
    Py_ssize_t size, length;
    int milliseconds, fd, error = 0;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "y#y#i:connect", &path, &size, &before, &length,
                          &milliseconds))
        return NULL;
    if (size >= (Py_ssize_t)sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    memcpy(address.sun_path, path, (size_t)size);
    Py_BEGIN_ALLOW_THREADS
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || set_timeout(fd, milliseconds) < 0 ||
        connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        send_all(fd, before, length) < 0 || set_timeout(fd, 0) < 0) {
        error = errno == EAGAIN || errno == EINTR || errno == EINPROGRESS ? ETIMEDOUT : errno;
        if (fd >= 0)
            close(fd);
    }
    Py_END_ALLOW_THREADS
    errno = error;
    return error ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static PyObject *close_all(PyObject *module, PyObject *list)
{
    int fds[PASSED_MAX], count = 0;

    (void)module;
    if (!PyList_Check(list) || PyList_Size(list) > PASSED_MAX) {
        PyErr_SetString(PyExc_TypeError, "no list of descriptors that came with a message");
        return NULL;
    }
    for (; count < PyList_Size(list); count++) {
        fds[count] = (int)PyLong_AsLong(PyList_GetItem(list, count));
        if (PyErr_Occurred())
            return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    close_passed(fds, count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"accept", accept_from, METH_VARARGS, NULL},
    {"attend", attend, METH_VARARGS, NULL},
    {"close_all", close_all, METH_O, NULL},
    {"connect", connect_to, METH_VARARGS, NULL},
    {"first", first, METH_VARARGS, NULL},
    {"send", send_now, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._link", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__link(void) { return PyModule_Create(&definition); }
