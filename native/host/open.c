/*
 * What is done with files in one step.
 *
 * open_and_close: open(2) and close(2). A program that only wants to know whether a block device is in
 * use opens it exclusively, and whoever mounts the device in that moment is refused. In Python that
 * moment ends when the interpreter runs this thread again, some milliseconds later where others are
 * busy; here it lasts some microseconds.
 *
 * first_of: which file is the first that is there. In Python each that is not costs an exception.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

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

static PyObject *first_of(PyObject *module, PyObject *arguments)
{
    PyObject *folders, *names, *folder = NULL, *name = NULL, *made = NULL;
    Py_ssize_t at = 0, folder_count, count;
    int follow, error = ENOENT;
    char path[PATH_MAX];
    struct stat found;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!p:first_of", &PyTuple_Type, &folders, &PyTuple_Type,
                          &names, &follow))
        return NULL;
    folder_count = PyTuple_Size(folders);
    count = PyTuple_Size(names) * folder_count;
    while (at < count && is_missing(error)) {
        if (!PyUnicode_FSConverter(PyTuple_GetItem(folders, at % folder_count), &folder) ||
            !PyUnicode_FSConverter(PyTuple_GetItem(names, at / folder_count), &name)) {
            Py_XDECREF(folder);
            return NULL;
        }
        Py_BEGIN_ALLOW_THREADS
        error = look(PyBytes_AsString(folder), PyBytes_AsString(name), follow, path, &found);
        Py_END_ALLOW_THREADS
        Py_CLEAR(folder);
        Py_CLEAR(name);
        at++;
    }
    if (is_missing(error))
        Py_RETURN_NONE;
    if (error) {
        errno = error;
        return PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
    }
    made = PyUnicode_DecodeFSDefault(path);
    return made == NULL ? NULL : Py_BuildValue("(NI)", made, (unsigned)found.st_mode);
}

static PyMethodDef functions[] = {
    {"first_of", first_of, METH_VARARGS, NULL},
    {"open_and_close", open_and_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._open", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__open(void) { return PyModule_Create(&definition); }
