/*
 * Turns: whether one side of a connection may say an event now, and what it may say next. The table
 * of states is connection.py's; the rules for ids are here, for both sides alike.
 */
#include "wire.h"

/* Names of attributes and methods. */
static PyObject *id_name, *state_name, *in_flight_name, *refuse_name;

/*
 * Whether the rules for ids let one side say `event`: 0 or the rule that forbids it, -1 with an
 * error. `own` has the ids of this side's requests in flight, `others` those that it may answer.
 */
static int take_id(PyObject *event, PyObject *own, PyObject *others)
{
    PyObject *class = (PyObject *)Py_TYPE(event), *id;
    int is_request = class == wire_request_class, forbidden = 0, found;

    if (!is_request && class != wire_answer_class && class != wire_error_answer_class)
        return 0;
    id = PyObject_GetAttr(event, id_name);
    if (id == NULL)
        return -1;
    found = is_request ? PySet_Contains(own, id) : PySet_Discard(others, id);
    if (found < 0)
        forbidden = -1;
    else if (is_request && found)
        forbidden = ID_IN_USE;
    else if (is_request && PySet_Size(own) >= PENDING_MAX)
        forbidden = TOO_MANY_PENDING;
    else if (is_request)
        forbidden = PySet_Add(own, id);
    else if (!found)
        forbidden = NO_REQUEST;
    Py_DECREF(id);
    return forbidden;
}

/*
 * Whether `state` and the rules for ids let one side say `event`: as take_id(). `target`, a borrowed
 * reference, is then the state that follows.
 */
static int take_turn(PyObject *table, PyObject *state, PyObject *event, PyObject **target,
                     PyObject *own, PyObject *others)
{
    PyObject *row = PyDict_GetItemWithError(table, state);

    *target = row == NULL ? NULL : PyDict_GetItemWithError(row, (PyObject *)Py_TYPE(event));
    if (*target == NULL)
        return PyErr_Occurred() ? -1 : OUT_OF_TURN;
    return take_id(event, own, others);
}

/* Calls side.refuse(rule, event), which raises the error of the rule that `event` breaks. */
static void raise_refusal(PyObject *side, int rule, PyObject *event)
{
    PyObject *number = PyLong_FromLong(rule), *refused = NULL;

    if (number != NULL)
        refused = PyObject_CallMethodObjArgs(side, refuse_name, number, event, NULL);
    if (refused != NULL)
        PyErr_SetString(PyExc_SystemError, "side.refuse() did not raise");
    Py_XDECREF(refused);
    Py_XDECREF(number);
}

PyObject *wire_say(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *side, *other, *event, *state, *own = NULL, *others = NULL, *target;
    int rule = -1;

    if (!wire_has_arguments(count, 4))
        return NULL;
    side = arguments[1];
    other = arguments[2];
    event = arguments[3];
    state = PyObject_GetAttr(side, state_name);
    if (state != NULL && (own = PyObject_GetAttr(side, in_flight_name)) != NULL &&
        (others = PyObject_GetAttr(other, in_flight_name)) != NULL)
        rule = take_turn(arguments[0], state, event, &target, own, others);
    if (rule == 0 && target != state)
        rule = PyObject_SetAttr(side, state_name, target);
    Py_XDECREF(state);
    Py_XDECREF(own);
    Py_XDECREF(others);
    if (rule > 0)
        raise_refusal(side, rule, event);
    return wire_none_or_error(rule == 0 ? 0 : -1);
}

int wire_turn_ready(void)
{
    static const struct wire_name names[] = {
        {&id_name, "id"},
        {&state_name, "state"},
        {&in_flight_name, "in_flight"},
        {&refuse_name, "refuse"},
    };

    return wire_make_names(names, sizeof(names) / sizeof(*names));
}
