/*
 * open(2) and close(2) as one step. A program that only wants to know whether a block device is in
 * use opens it exclusively, and whoever mounts the device in that moment is refused. In Python that
 * moment ends when the interpreter runs this thread again, some milliseconds later where others are
 * busy; here it lasts some microseconds.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
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

static PyMethodDef functions[] = {
    {"open_and_close", open_and_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._open", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__open(void) { return PyModule_Create(&definition); }
