/*
 * Turns: whether one side of a connection may say an event now, and what it may say next. The table
 * of states is connection.py's; the rules for ids are here, for both sides alike.
 */
#include "wire.h"

static PyObject *id_name; /* of an attribute */

/* Where the id is in `ids`, or -1. A search in order, as there are at most PENDING_MAX. */
static int find_id(const struct wire_ids *ids, uint32_t id)
{
    for (int i = 0; i < ids->count; i++)
        if (ids->at[i] == id)
            return i;
    return -1;
}

int wire_has_id(const struct wire_ids *ids, PyObject *id)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(id);

    if (number == (unsigned long long)-1 && PyErr_Occurred())
        return -1;
    return number <= ID_MAX && find_id(ids, (uint32_t)number) >= 0;
}

/* Returns 0, or -1 with an error. There is memory for as many as there are, so none if idle. */
static int add_id(struct wire_ids *ids, uint32_t id)
{
    uint32_t *more = PyMem_Realloc(ids->at, (size_t)(ids->count + 1) * sizeof(*more));

    if (more == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ids->at = more;
    ids->at[ids->count++] = id;
    return 0;
}

static void remove_id(struct wire_ids *ids, int index)
{
    ids->at[index] = ids->at[--ids->count];
    if (ids->count == 0)
        wire_forget_ids(ids);
}

void wire_forget_ids(struct wire_ids *ids)
{
    PyMem_Free(ids->at);
    ids->at = NULL;
    ids->count = 0;
}

/* The id of a request or an answer, at most ID_MAX: it was checked. Returns 1; 0 if the event has
 * none, or -1 with an error. */
static int id_of(PyObject *event, unsigned long *number)
{
    PyObject *class = (PyObject *)Py_TYPE(event), *id;

    if (class == wire_request_class || class == wire_answer_class) {
        _Static_assert((int)REQUEST_ID == (int)ANSWER_ID, "one place for both");
        *number = PyLong_AsUnsignedLong(((struct wire_event *)event)->values[ANSWER_ID]);
    } else if (class == wire_error_answer_class) {
        if ((id = PyObject_GetAttr(event, id_name)) == NULL)
            return -1;
        *number = PyLong_AsUnsignedLong(id);
        Py_DECREF(id);
    } else {
        return 0;
    }
    return *number == (unsigned long)-1 && PyErr_Occurred() ? -1 : 1;
}

/*
 * Whether the rules for ids let `side` say `event`: 0 or the rule that forbids it, -1 with an error.
 * A request has an id of its own, an answer one of the `other` side's.
 */
static int take_id(struct wire_side *side, struct wire_side *other, PyObject *event)
{
    int is_request = (PyObject *)Py_TYPE(event) == wire_request_class, index;
    unsigned long number;

    if ((index = id_of(event, &number)) <= 0)
        return index;
    index = find_id(is_request ? &side->in_flight : &other->in_flight, (uint32_t)number);
    if (!is_request) {
        if (index < 0)
            return NO_REQUEST;
        remove_id(&other->in_flight, index);
        return 0;
    }
    if (index >= 0)
        return ID_IN_USE;
    return side->in_flight.count >= PENDING_MAX ? TOO_MANY_PENDING
                                                : add_id(&side->in_flight, (uint32_t)number);
}

int wire_take_turn(PyObject *table, struct wire_side *side, struct wire_side *other, PyObject *event)
{
    PyObject *row = PyDict_GetItemWithError(table, side->state), *target = NULL;
    int rule;

    if (row != NULL)
        target = PyDict_GetItemWithError(row, (PyObject *)Py_TYPE(event));
    if (target == NULL)
        return PyErr_Occurred() ? -1 : OUT_OF_TURN;
    rule = take_id(side, other, event);
    if (rule == 0)
        wire_enter(side, target);
    return rule;
}

void wire_enter(struct wire_side *side, PyObject *state)
{
    PyObject *before = side->state;

    Py_INCREF(state);
    side->state = state;
    Py_XDECREF(before);
}

int wire_turn_ready(void)
{
    static const struct wire_name names[] = {{&id_name, "id"}};

    return wire_make_names(names, sizeof(names) / sizeof(*names));
}
