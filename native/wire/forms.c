/*
 * Checks of values from a connection, many in one step. A form says which values are right as they
 * are, so that nothing has to be called for them; any other value is for the form's parse function,
 * which makes something of it, or raises ValueError. forms.py has the forms, and what they stand for.
 */
#include "wire.h"

#include <string.h>

/* The kinds of forms, which forms.py knows by these letters. */
enum { ASCII = 't', WORD = 'w', INTEGER = 'i', REAL = 'r', FLAG = 'f', OTHER = 'o' };

struct form {
    PyObject_HEAD
    int kind;
    int may_be_none;
    long long low, high;        /* of an integer, of a real, or of the length of a text */
    uint8_t first[16], rest[16]; /* bits of the characters of a text */
    PyObject *words;
    PyObject *parse;
};

static PyObject *form_class;

static int has(const uint8_t *bits, unsigned character)
{
    return character < 128 && bits[character / 8] >> character % 8 & 1;
}

/* Returns 0, or -1 with an error. */
static int fill(uint8_t *bits, const char *characters)
{
    for (; *characters; characters++) {
        if ((unsigned char)*characters > 127) {
            PyErr_SetString(PyExc_ValueError, "a form's characters are ASCII");
            return -1;
        }
        bits[*characters / 8] |= (uint8_t)(1 << *characters % 8);
    }
    return 0;
}

static int is_ascii_of(const struct form *form, PyObject *value)
{
    const char *text;
    Py_ssize_t size;

    /* The length in characters first: no long text is encoded to be looked at. */
    if (!PyUnicode_CheckExact(value) || PyUnicode_GetLength(value) > form->high)
        return 0;
    text = PyUnicode_AsUTF8AndSize(value, &size);
    if (text == NULL) { /* half a character */
        PyErr_Clear();
        return 0;
    }
    if (size < form->low || (size > 0 && !has(form->first, (unsigned char)*text)))
        return 0;
    for (Py_ssize_t i = 1; i < size; i++)
        if (!has(form->rest, (unsigned char)text[i]))
            return 0;
    return 1;
}

static int is_integer_of(const struct form *form, PyObject *value)
{
    int overflow;
    long long number;

    if (!PyLong_CheckExact(value))
        return 0;
    number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return !overflow && number >= form->low && number <= form->high;
}

/* Whether a value is right as it is; -1 with an error. */
static int fits(const struct form *form, PyObject *value)
{
    if (value == Py_None && form->may_be_none)
        return 1;
    switch (form->kind) {
    case ASCII:
        return is_ascii_of(form, value);
    case WORD:
        return PyUnicode_CheckExact(value) ? PySequence_Contains(form->words, value) : 0;
    case INTEGER:
        return is_integer_of(form, value);
    case REAL: /* no number is not at least `low` */
        return PyFloat_CheckExact(value) && PyFloat_AsDouble(value) >= (double)form->low;
    case FLAG:
        return PyBool_Check(value);
    default:
        return 0;
    }
}

/* The value as its form has it. NULL if it is wrong, with ValueError if the form's function says
 * why, or with another error that is not about the value. */
static PyObject *taken(const struct form *form, PyObject *value)
{
    int is_right = fits(form, value);

    if (is_right < 0)
        return NULL;
    if (is_right) {
        Py_INCREF(value);
        return value;
    }
    return form->parse == Py_None ? NULL : PyObject_CallFunctionObjArgs(form->parse, value, NULL);
}

/* A value of a list of forms; NULL with an error if it is none. */
static const struct form *form_of(PyObject *item)
{
    if (item != NULL && Py_TYPE(item) == (PyTypeObject *)form_class)
        return (const struct form *)item;
    PyErr_SetString(PyExc_TypeError, "a form is expected");
    return NULL;
}

PyObject *wire_take_list(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *forms, *values, *made, *value;
    const struct form *form;
    Py_ssize_t count;

    if (!PyArg_ParseTuple(arguments, "O!O!", &PyTuple_Type, &forms, &PyTuple_Type, &values))
        return NULL;
    count = PyTuple_Size(forms);
    if (PyTuple_Size(values) != count)
        Py_RETURN_NONE;
    made = PyTuple_New(count);
    for (Py_ssize_t i = 0; made != NULL && i < count; i++) {
        form = form_of(PyTuple_GetItem(forms, i));
        value = form == NULL ? NULL : taken(form, PyTuple_GetItem(values, i));
        if (value != NULL) {
            PyTuple_SetItem(made, i, value);
            continue;
        }
        Py_DECREF(made);
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_ValueError))
            return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return made;
}

/* Makes the error about a wrong value tell its place; returns NULL. */
static PyObject *refuse_at(PyObject *name)
{
    PyObject *type, *error, *trace;

    if (!PyErr_Occurred())
        return PyErr_Format(PyExc_ValueError, "%S: there is no such value", name);
    if (!PyErr_ExceptionMatches(PyExc_ValueError))
        return NULL;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    PyErr_Format(PyExc_ValueError, "%S: %S", name, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return NULL;
}

PyObject *wire_take_map(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *forms, *untrusted, *made, *name, *item, *value;
    const struct form *form;
    Py_ssize_t at = 0;
    int is_set = 0;

    if (!PyArg_ParseTuple(arguments, "O!O!", &PyDict_Type, &forms, &PyDict_Type, &untrusted))
        return NULL;
    if (PyDict_Size(forms) != PyDict_Size(untrusted))
        Py_RETURN_NONE;
    made = PyDict_New();
    while (made != NULL && is_set == 0 && PyDict_Next(forms, &at, &name, &item)) {
        value = PyDict_GetItemWithError(untrusted, name);
        if (value == NULL) {
            Py_DECREF(made);
            if (PyErr_Occurred())
                return NULL;
            Py_RETURN_NONE;
        }
        form = form_of(item);
        value = form == NULL ? NULL : taken(form, value);
        if (value == NULL) {
            Py_DECREF(made);
            return refuse_at(name);
        }
        is_set = PyDict_SetItem(made, name, value);
        Py_DECREF(value);
    }
    if (is_set < 0)
        Py_CLEAR(made);
    return made;
}

static PyObject *new_form(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"kind", "low",   "high",  "first",       "rest",
                            "words", "parse", "may_be_none", NULL};
    const char *first = "", *rest = "";
    PyObject *words = Py_None, *parse = Py_None;
    int kind, may_be_none = 0;
    long long low = 0, high = 0;
    struct form *form;

    if (!PyArg_ParseTupleAndKeywords(arguments, named, "C|LLssOOp:Form", names, &kind, &low, &high,
                                     &first, &rest, &words, &parse, &may_be_none))
        return NULL;
    form = (struct form *)PyType_GenericAlloc(type, 0);
    if (form == NULL)
        return NULL;
    form->kind = kind;
    form->may_be_none = may_be_none;
    form->low = low;
    form->high = high;
    Py_INCREF(words);
    form->words = words;
    Py_INCREF(parse);
    form->parse = parse;
    if (fill(form->first, first) < 0 || fill(form->rest, rest) < 0)
        Py_CLEAR(form);
    return (PyObject *)form;
}

static void free_form(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    Py_XDECREF(((struct form *)self)->words);
    Py_XDECREF(((struct form *)self)->parse);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

int wire_forms_ready(PyObject *module)
{
    static PyType_Slot slots[] = {
        {Py_tp_new, (void *)new_form},
        {Py_tp_dealloc, (void *)free_form},
        {0, NULL},
    };
    static PyType_Spec spec = {"pedos_protocol._wire.Form", sizeof(struct form), 0,
                               Py_TPFLAGS_DEFAULT, slots};

    form_class = PyType_FromSpec(&spec);
    return form_class == NULL ? -1 : PyModule_AddObjectRef(module, "Form", form_class);
}
