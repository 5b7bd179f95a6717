/* Receiving ordinary requests: `OrdinaryReceiver.receive` reads what has come on a connection, and puts it into the
 * parser's list if it is one request of request.c. Everything else it hands to Python, as bytes. The reference is
 * `RequestParser.feed` behind a recv(2).
 */

#include "native.h"

#include <errno.h>
#include <sys/socket.h>

/* Attributes that are read or written directly, by where they are in an object with __slots__. */
#define PLACES(X)                                                                                                   \
    X(connection, parser) X(connection, fd) X(connection, receiving_since) X(parser, requests) X(parser, receiving) \
    X(parser, _native) X(parser, _ended) X(parser, _empty_lines)

typedef struct {
    PyObject_HEAD
    PyTypeObject *connection_type, *parser_type;
    PLACES(NATIVE_DECLARE_PLACE)
    Py_ssize_t size;
    char *buffer;
} receiver_object;

static PyObject *zero;

/* What has come: new bytes, or NULL with an exception. */
static PyObject *
read_some(receiver_object *self, PyObject *connection)
{
    long fd = PyLong_AsLong(NATIVE_AT(connection, self->connection_fd));
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    ssize_t size;
    /* The descriptor is non-blocking, so the GIL is not released. PEP 475. */
    while ((size = recv((int)fd, self->buffer, (size_t)self->size, 0)) < 0 && errno == EINTR)
        if (PyErr_CheckSignals() < 0)
            return NULL;
    return size < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyBytes_FromStringAndSize(self->buffer, size);
}

static PyObject *
receive(receiver_object *self, PyObject *connection)
{
    if (!PyObject_TypeCheck(connection, self->connection_type)) {
        PyErr_SetString(PyExc_TypeError, "receive(connection)");
        return NULL;
    }
    PyObject *data = read_some(self, connection);
    PyObject *parser = NATIVE_AT(connection, self->connection_parser);
    if (data == NULL || parser == NULL || !PyObject_TypeCheck(parser, self->parser_type))
        return data;
    PyObject *rules = NATIVE_AT(parser, self->parser__native), *requests = NATIVE_AT(parser, self->parser_requests);
    PyObject *since = NATIVE_AT(connection, self->connection_receiving_since);
    if (rules == NULL || !Py_IS_TYPE(rules, &native_rules_type) || requests == NULL || !PyList_CheckExact(requests) ||
        since != zero || NATIVE_AT(parser, self->parser_receiving) != Py_False ||
        NATIVE_AT(parser, self->parser__ended) != Py_False)
        return data;
    PyObject *request = native_request_of(data, (native_rules *)rules);
    if (request == Py_None || request == NULL) {
        Py_XDECREF(request);
        if (request == NULL)
            Py_CLEAR(data);
        return data;
    }
    Py_DECREF(data);
    Py_XSETREF(NATIVE_AT(parser, self->parser__empty_lines), Py_NewRef(zero));
    int failed = PyList_Append(requests, request);
    Py_DECREF(request);
    return failed ? NULL : Py_NewRef(Py_None);
}

static void
receiver_dealloc(receiver_object *self)
{
    PyMem_Free(self->buffer);
    Py_XDECREF(self->connection_type);
    Py_XDECREF(self->parser_type);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static bool
fill(receiver_object *self)
{
    PLACES(NATIVE_FIND_PLACE)
    if (self->size < 1 || (self->buffer = PyMem_Malloc((size_t)self->size)) == NULL) {
        PyErr_NoMemory();
        return false;
    }
    return true;
}

static PyObject *
receiver_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"connection_type", "parser_type", "size", NULL};
    PyObject *connection_type, *parser_type;
    Py_ssize_t size;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!n", names, &PyType_Type, &connection_type, &PyType_Type,
                                     &parser_type, &size))
        return NULL;
    receiver_object *self = (receiver_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->connection_type = (PyTypeObject *)Py_NewRef(connection_type);
    self->parser_type = (PyTypeObject *)Py_NewRef(parser_type);
    self->size = size;
    if (!fill(self)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyMethodDef receiver_methods[] = {
    {"receive", (PyCFunction)receive, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject receiver_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ostler._native.OrdinaryReceiver",
    .tp_basicsize = sizeof(receiver_object),
    .tp_dealloc = (destructor)receiver_dealloc,
    .tp_new = receiver_new,
    .tp_methods = receiver_methods,
    .tp_flags = Py_TPFLAGS_DEFAULT,
};

int
native_add_receiving(PyObject *module)
{
    if ((zero = PyLong_FromLong(0)) == NULL || PyType_Ready(&receiver_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "OrdinaryReceiver", (PyObject *)&receiver_type);
}
