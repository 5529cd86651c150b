/*
 * posix_spawn(3) of the C library, in one step. Python's own holds the interpreter's lock until the
 * program runs: a service on a file system that does not answer would stop all calls. It also cannot
 * have the process begin in a control group (glibc 2.39), which is far cheaper than to move it there.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef POSIX_SPAWN_SETCGROUP
#define POSIX_SPAWN_SETCGROUP 0x100
#endif
/* Weak: one build is for C libraries with and without it. */
extern int posix_spawnattr_setcgroup_np(posix_spawnattr_t *, int) __attribute__((weak));

/* A process gets three, or one more. */
#define DESCRIPTORS_MAX 8

static PyObject *can_begin_in_group(PyObject *module, PyObject *arguments)
{
    (void)module;
    (void)arguments;
    return PyBool_FromLong(posix_spawnattr_setcgroup_np != NULL);
}

/* Texts and bytes as a process has them. */
struct strings {
    PyObject *kept; /* a list of bytes, which `each` points into */
    char **each;    /* with NULL behind them */
};

static void release(struct strings *strings)
{
    PyMem_Free(strings->each);
    Py_XDECREF(strings->kept);
}

/* 0, or -1 with an error: one is neither, or has a zero within. */
static int convert(PyObject *tuple, struct strings *strings)
{
    Py_ssize_t count = PyTuple_Size(tuple);
    PyObject *bytes;

    strings->kept = PyList_New(count);
    strings->each = PyMem_Malloc(((size_t)count + 1) * sizeof *strings->each);
    if (strings->kept == NULL || strings->each == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!PyUnicode_FSConverter(PyTuple_GetItem(tuple, i), &bytes))
            return -1;
        strings->each[i] = PyBytes_AsString(bytes);
        PyList_SetItem(strings->kept, i, bytes);
    }
    strings->each[count] = NULL;
    return 0;
}

/* The functions below return 0 or an error's number, as those of <spawn.h> do. */

/* A session of its own, no signal blocked or ignored: Python ignores some, and who started it may
 * have ignored others. */
static int set_attributes(posix_spawnattr_t *attributes, int group)
{
    short flags = POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    sigset_t signals;
    int error = 0;

    sigemptyset(&signals);
    posix_spawnattr_setsigmask(attributes, &signals);
    /* Also 32 and 33, which the C library keeps to itself: sigfillset(3) leaves them out, and what is
     * not in this set of those the new process begins with ignored. */
    memset(&signals, 0xff, sizeof signals);
    posix_spawnattr_setsigdefault(attributes, &signals);
    if (group >= 0) {
        flags |= POSIX_SPAWN_SETCGROUP;
        error = posix_spawnattr_setcgroup_np != NULL
                    ? posix_spawnattr_setcgroup_np(attributes, group)
                    : ENOSYS;
    }
    return error ? error : posix_spawnattr_setflags(attributes, flags);
}

static int start(pid_t *pid, const char *path, char **argv, char **envp, const int *descriptors,
                 int count, int group)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int error = posix_spawn_file_actions_init(&actions);

    if (error)
        return error;
    error = posix_spawnattr_init(&attributes);
    if (!error) {
        error = set_attributes(&attributes, group);
        for (int i = 0; !error && i < count; i++)
            error = posix_spawn_file_actions_adddup2(&actions, descriptors[i], i);
        if (!error)
            error = posix_spawn(pid, path, &actions, &attributes, argv, envp);
        posix_spawnattr_destroy(&attributes);
    }
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* A descriptor that is readable when the process has ended, or -errno: then it has been ended. The
 * caller has nobody reap it meanwhile. */
static int watch(pid_t pid)
{
    int file = (int)syscall(SYS_pidfd_open, pid, 0), error = errno;

    if (file >= 0)
        return file;
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return -error;
}

/* How many descriptors the tuple has; -1 with an error. */
static int read_descriptors(PyObject *tuple, int *descriptors)
{
    Py_ssize_t count = PyTuple_Size(tuple);

    if (count > DESCRIPTORS_MAX) {
        PyErr_SetString(PyExc_ValueError, "more descriptors than a process gets");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        descriptors[i] = (int)PyLong_AsLong(PyTuple_GetItem(tuple, i));
        if (PyErr_Occurred())
            return -1;
    }
    return (int)count;
}

static PyObject *spawn(PyObject *module, PyObject *arguments)
{
    struct strings argv = {NULL, NULL}, envp = {NULL, NULL};
    PyObject *path = NULL, *words, *variables, *numbers, *made = NULL;
    int descriptors[DESCRIPTORS_MAX], count, group, error, file = -1;
    pid_t pid = -1;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "O&O!O!O!i:spawn", PyUnicode_FSConverter, &path, &PyTuple_Type,
                          &words, &PyTuple_Type, &variables, &PyTuple_Type, &numbers, &group))
        return NULL;
    count = read_descriptors(numbers, descriptors);
    if (count >= 0 && convert(words, &argv) == 0 && convert(variables, &envp) == 0) {
        const char *name = PyBytes_AsString(path);

        Py_BEGIN_ALLOW_THREADS
        error = start(&pid, name, argv.each, envp.each, descriptors, count, group);
        if (!error)
            file = watch(pid);
        Py_END_ALLOW_THREADS
        if (error) {
            errno = error;
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, name);
        } else if (file < 0) {
            errno = -file;
            PyErr_SetFromErrno(PyExc_OSError);
        } else {
            made = Py_BuildValue("(ii)", (int)pid, file);
        }
    }
    release(&envp);
    release(&argv);
    Py_DECREF(path);
    return made;
}

static PyObject *reap(PyObject *module, PyObject *arguments)
{
    int which, status = 0;
    pid_t pid;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "i:reap", &which))
        return NULL;
    do
        pid = waitpid(which, &status, WNOHANG);
    while (pid < 0 && errno == EINTR);
    return pid < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_BuildValue("(ii)", (int)pid, status);
}

static PyMethodDef functions[] = {
    {"can_begin_in_group", can_begin_in_group, METH_NOARGS, NULL},
    {"reap", reap, METH_VARARGS, NULL},
    {"spawn", spawn, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._spawn", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__spawn(void) { return PyModule_Create(&definition); }
