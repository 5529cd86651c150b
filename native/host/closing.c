/* closer.h for Python: pedos_host._closing. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "closer.h"

/* What one message can pass is 253 (SCM_MAX_FD); more are given in parts. */
#define AT_ONCE 256

struct line {
    PyObject_HEAD
    struct pc_owner *owner;
};

static struct pc_owner *owner_of(PyObject *self)
{
    return ((struct line *)self)->owner;
}

static PyObject *line_new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);

    (void)arguments;
    (void)names;
    if (!self)
        return NULL;
    ((struct line *)self)->owner = pc_owner_new();
    if (!owner_of(self)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return self;
}

static void line_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (owner_of(self))
        pc_owner_free(owner_of(self));
    release(self);
    Py_DECREF(type);
}

static PyObject *line_close(PyObject *self, PyObject *arguments)
{
    int fds[AT_ONCE];
    unsigned lines_max, idle_ms, count = 0;
    Py_ssize_t length;
    PyObject *given;

    if (!PyArg_ParseTuple(arguments, "OII:close", &given, &lines_max, &idle_ms))
        return NULL;
    length = PySequence_Size(given);
    if (length < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < length; i++) {
        PyObject *each = PySequence_GetItem(given, i);
        long number = each ? PyLong_AsLong(each) : -1;

        Py_XDECREF(each);
        if (number == -1 && PyErr_Occurred())
            return NULL;
        if (number >= 0 && number <= INT_MAX)
            fds[count++] = (int)number;
        if (count == AT_ONCE) {
            if (pc_close(owner_of(self), fds, count, lines_max, idle_ms))
                return PyErr_NoMemory();
            count = 0;
        }
    }
    if (count && pc_close(owner_of(self), fds, count, lines_max, idle_ms))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *line_open(PyObject *self, void *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLong(pc_owner_open(owner_of(self)));
}

static PyMethodDef methods[] = {
    {"close", line_close, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"open", line_open, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, line_new},
    {Py_tp_dealloc, line_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec specification = {
    .name = "pedos_host._closing.Line",
    .basicsize = sizeof(struct line),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static PyObject *count_open(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyLong_FromUnsignedLong(pc_open());
}

static PyMethodDef functions[] = {
    {"open_in_all", count_open, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "pedos_host._closing", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__closing(void)
{
    PyObject *module = PyModule_Create(&definition), *line;

    if (!module)
        return NULL;
    line = PyType_FromSpec(&specification);
    if (!line || PyModule_AddObjectRef(module, "Line", line)) {
        Py_XDECREF(line);
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(line);
    return module;
}
