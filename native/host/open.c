/*
 * What is done with files in one step.
 *
 * open_and_close: open(2) and close(2). A program that only wants to know whether a block device is in
 * use opens it exclusively, and whoever mounts the device in that moment is refused. In Python that
 * moment ends when the interpreter runs this thread again, some milliseconds later where others are
 * busy; here it lasts some microseconds.
 *
 * first_of: which file is the first that is there. In Python each that is not costs an exception.
 *
 * plain_service: which program or socket that is, if nothing else is to be known about it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* Folders or names that are looked for at once. */
#define NAMES_MAX 64

static PyObject *open_and_close(PyObject *module, PyObject *arguments)
{
    PyObject *path;
    const char *name;
    int flags, file, error;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "O&i:open_and_close", PyUnicode_FSConverter, &path, &flags))
        return NULL;
    name = PyBytes_AsString(path);
    Py_BEGIN_ALLOW_THREADS
    do {
        file = open(name, flags);
        error = errno;
        if (file >= 0)
            close(file);
    } while (file < 0 && error == EINTR);
    Py_END_ALLOW_THREADS
    if (file < 0) {
        errno = error;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, name);
        Py_DECREF(path);
        return NULL;
    }
    Py_DECREF(path);
    Py_RETURN_NONE;
}

/* Whether a file of the folder is there. 0, or an error's number. */
static int look(const char *folder, const char *name, int follow, char *path, struct stat *found)
{
    int size = snprintf(path, PATH_MAX, "%s/%s", folder, name), flags = AT_SYMLINK_NOFOLLOW;

    if (size < 0 || size >= PATH_MAX)
        return ENAMETOOLONG; /* as the kernel says it */
    return fstatat(AT_FDCWD, path, found, follow ? 0 : flags) < 0 ? errno : 0;
}

/* A name that is too long for a file system is the name of no file there. */
static int is_missing(int error)
{
    return error == ENOENT || error == ENOTDIR || error == ENAMETOOLONG;
}

/* Names of files or folders as the system has them. */
struct names {
    Py_ssize_t count;
    PyObject *kept[NAMES_MAX]; /* bytes, which `each` points into */
    const char *each[NAMES_MAX];
};

static void release(struct names *names)
{
    while (names->count)
        Py_DECREF(names->kept[--names->count]);
}

/* 0, or -1 with an error. */
static int convert(PyObject *tuple, struct names *names)
{
    Py_ssize_t count = PyTuple_Size(tuple);

    if (count > NAMES_MAX) {
        PyErr_SetString(PyExc_ValueError, "more names than can be looked for at once");
        return -1;
    }
    while (names->count < count) {
        PyObject **kept = &names->kept[names->count];

        if (!PyUnicode_FSConverter(PyTuple_GetItem(tuple, names->count), kept))
            return -1;
        names->each[names->count++] = PyBytes_AsString(*kept);
    }
    return 0;
}

/* The first file that is there; 0, or an error's number: ENOENT if none is. */
static int search(const struct names *folders, const struct names *names, int follow, char *path,
                  struct stat *found)
{
    int error = ENOENT;

    for (Py_ssize_t i = 0; is_missing(error) && i < names->count; i++)
        for (Py_ssize_t j = 0; is_missing(error) && j < folders->count; j++)
            error = look(folders->each[j], names->each[i], follow, path, found);
    return error;
}

static PyObject *path_and_mode(const char *path, const struct stat *found)
{
    return Py_BuildValue("(NI)", PyUnicode_DecodeFSDefault(path), (unsigned)found->st_mode);
}

static PyObject *first_of(PyObject *module, PyObject *arguments)
{
    struct names folders = {.count = 0}, names = {.count = 0};
    PyObject *some, *others, *made = NULL;
    char path[PATH_MAX];
    struct stat found;
    int follow, error;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!p:first_of", &PyTuple_Type, &some, &PyTuple_Type,
                          &others, &follow))
        return NULL;
    if (convert(some, &folders) == 0 && convert(others, &names) == 0) {
        Py_BEGIN_ALLOW_THREADS
        error = search(&folders, &names, follow, path, &found);
        Py_END_ALLOW_THREADS
        if (is_missing(error)) {
            made = Py_NewRef(Py_None);
        } else if (error) {
            errno = error;
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
        } else {
            made = path_and_mode(path, &found);
        }
    }
    release(&names);
    release(&folders);
    return made;
}

static PyObject *plain_service(PyObject *module, PyObject *arguments)
{
    struct names before = {.count = 0}, folders = {.count = 0}, names = {.count = 0};
    PyObject *some, *others, *more, *made = NULL;
    char path[PATH_MAX];
    struct stat found;
    bool is_plain;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!O!:plain_service", &PyTuple_Type, &some, &PyTuple_Type,
                          &others, &PyTuple_Type, &more))
        return NULL;
    if (convert(some, &before) == 0 && convert(others, &folders) == 0 &&
        convert(more, &names) == 0) {
        Py_BEGIN_ALLOW_THREADS
        is_plain = is_missing(search(&before, &names, true, path, &found)) &&
                   search(&folders, &names, false, path, &found) == 0 &&
                   (S_ISSOCK(found.st_mode) ||
                    (S_ISREG(found.st_mode) && access(path, X_OK) == 0));
        Py_END_ALLOW_THREADS
        made = is_plain ? path_and_mode(path, &found) : Py_NewRef(Py_None);
    }
    release(&names);
    release(&folders);
    release(&before);
    return made;
}

static PyMethodDef functions[] = {
    {"first_of", first_of, METH_VARARGS, NULL},
    {"open_and_close", open_and_close, METH_VARARGS, NULL},
    {"plain_service", plain_service, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._open", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__open(void) { return PyModule_Create(&definition); }
