/* The ordinary answer: start_response (PEP 3333), the encoded head, and what Python needs to go on with an exchange.
 *
 * Encoded are heads with a final status that has a body, names and values of visible ASCII characters, and no field
 * that is the server's. For anything else, and for errors, an Exchange is made, which does it all in Python:
 * `http1/response.py` is the reference.
 */

#include "native.h"

#include <stddef.h>

/* -- the head ------------------------------------------------------------------------------------------------- */

static bool
are(const char *text, Py_ssize_t size, uint8_t kind)
{
    uint8_t all = kind;
    for (Py_ssize_t i = 0; i < size; i++)
        all &= native_kinds[(uint8_t)text[i]];
    return all != 0;
}

/* The characters of an ASCII str; NULL if the object is none. A subclass could mean something else. */
static const char *
ascii_of(PyObject *object, Py_ssize_t *size)
{
    if (!PyUnicode_CheckExact(object) || !PyUnicode_IS_COMPACT_ASCII(object))
        return NULL;
    *size = PyUnicode_GET_LENGTH(object);
    return (const char *)PyUnicode_1BYTE_DATA(object);
}

/* Whether only the server sets the field, or what it sets depends on it. */
static bool
is_servers(const char *name, size_t size)
{
    if (strchr("ckptuds", native_lower(name[0])) == NULL) /* their first letters */
        return false;
    static const char *const names[] = {"connection",         "keep-alive", "proxy-connection",
                                        "transfer-encoding",  "te",         "trailer",
                                        "upgrade",            "date",       "proxy-authenticate",
                                        "proxy-authorization", "server"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (native_equals_lower(name, size, names[i]))
            return true;
    return false;
}

static bool
append(native_response *self, const char *text, Py_ssize_t size)
{
    if (size > self->head_room - self->head_size) {
        Py_ssize_t room = (self->head_size + size) * 2;
        char *head = PyMem_Malloc((size_t)room);
        if (head == NULL) {
            PyErr_NoMemory();
            return false;
        }
        memcpy(head, self->head, (size_t)self->head_size);
        if (self->head != self->inline_head)
            PyMem_Free(self->head);
        self->head = head;
        self->head_room = room;
    }
    memcpy(self->head + self->head_size, text, (size_t)size);
    self->head_size += size;
    return true;
}

/* Encode one header; false, with or without an exception, if it is not ordinary. */
static bool
encode_header(native_response *self, PyObject *header)
{
    if (!PyTuple_CheckExact(header) || PyTuple_GET_SIZE(header) != 2)
        return false;
    Py_ssize_t name_size, size;
    const char *name = ascii_of(PyTuple_GET_ITEM(header, 0), &name_size);
    const char *value = ascii_of(PyTuple_GET_ITEM(header, 1), &size);
    if (name == NULL || value == NULL || name_size == 0 || !are(name, name_size, NATIVE_TOKEN) ||
        !are(value, size, NATIVE_VALUE))
        return false;
    if (native_equals_lower(name, (size_t)name_size, "content-length")) {
        if (self->length >= 0 || (self->length = native_number(value, (size_t)size, 18)) < 0)
            return false;
    }
    else if (is_servers(name, (size_t)name_size))
        return false;
    return append(self, name, name_size) && append(self, ": ", 2) && append(self, value, size) &&
           append(self, "\r\n", 2);
}

/* Encode the head; false, with or without an exception, if it is not ordinary. */
static bool
encode_head(native_response *self, PyObject *status, PyObject *headers)
{
    Py_ssize_t size;
    const char *text = ascii_of(status, &size);
    if (text == NULL || size < 5 || text[3] != ' ' || !are(text, size, NATIVE_VALUE) || !PyList_CheckExact(headers))
        return false;
    int code = (int)native_number(text, 3, 3);
    if (code < 200 || code == 204 || code == 304)
        return false;
    self->head_size = 0;
    self->length = -1;
    if (!append(self, "HTTP/1.1 ", 9) || !append(self, text, size) || !append(self, "\r\n", 2))
        return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(headers); i++)
        if (!encode_header(self, PyList_GET_ITEM(headers, i)))
            return false;
    self->code = code;
    return true;
}

/* -- start_response ------------------------------------------------------------------------------------------- */

static PyObject *name_start_response, *name_write, *name_exchange_write, *name_close;

native_response *
native_new_response(PyObject *make_exchange, native_request *request, PyObject *connection)
{
    native_response *self = PyObject_New(native_response, &native_response_type);
    if (self == NULL)
        return NULL;
    self->make_exchange = Py_NewRef(make_exchange);
    self->request = (native_request *)Py_NewRef(request);
    self->connection = Py_NewRef(connection);
    self->exchange = self->status = self->headers = NULL;
    self->head = self->inline_head;
    self->head_size = 0;
    self->head_room = sizeof self->inline_head;
    self->length = -1;
    self->sent = 0;
    self->code = 500;
    self->is_whole = 0;
    return self;
}

static void
response_dealloc(native_response *self)
{
    Py_XDECREF(self->make_exchange);
    Py_XDECREF(self->request);
    Py_XDECREF(self->connection);
    Py_XDECREF(self->exchange);
    Py_XDECREF(self->status);
    Py_XDECREF(self->headers);
    if (self->head != self->inline_head)
        PyMem_Free(self->head);
    PyObject_Free(self);
}

/* The Exchange that goes on with the request: a borrowed reference, or NULL with an exception. */
PyObject *
native_exchange_of(native_response *self)
{
    if (self->exchange != NULL)
        return self->exchange;
    PyObject *exchange =
        PyObject_CallFunctionObjArgs(self->make_exchange, (PyObject *)self->request,
                                     self->connection != NULL ? self->connection : Py_None, NULL);
    if (exchange != NULL && self->status != NULL) {
        PyObject *length = self->length < 0 ? Py_NewRef(Py_None) : PyLong_FromSsize_t(self->length);
        PyObject *head = PyBytes_FromStringAndSize(self->head, self->head_size);
        PyObject *done = NULL;
        if (length != NULL && head != NULL)
            done = PyObject_CallMethod(exchange, "adopt", "OOiOOOn", self->status, self->headers, self->code, head,
                                       length, self->is_whole ? Py_True : Py_False, self->sent);
        Py_XDECREF(length);
        Py_XDECREF(head);
        Py_XDECREF(done);
        if (done == NULL)
            Py_CLEAR(exchange);
    }
    if (exchange == NULL)
        return NULL;
    if (self->exchange == NULL)
        self->exchange = exchange;
    else
        Py_DECREF(exchange); /* another thread, or a signal handler, has made one meanwhile */
    return self->exchange;
}

static PyObject *
response_call(native_response *self, PyObject *arguments, PyObject *keywords)
{
    if (self->exchange == NULL && self->status == NULL && self->connection != NULL && keywords == NULL &&
        PyTuple_GET_SIZE(arguments) == 2) {
        PyObject *status = PyTuple_GET_ITEM(arguments, 0), *headers = PyTuple_GET_ITEM(arguments, 1);
        if (encode_head(self, status, headers)) {
            self->status = Py_NewRef(status);
            self->headers = Py_NewRef(headers);
            return PyObject_GetAttr((PyObject *)self, name_write);
        }
        if (PyErr_Occurred())
            return NULL;
    }
    PyObject *exchange = native_exchange_of(self);
    if (exchange == NULL)
        return NULL;
    PyObject *start_response = PyObject_GetAttr(exchange, name_start_response);
    if (start_response == NULL)
        return NULL;
    PyObject *write = PyObject_Call(start_response, arguments, keywords);
    Py_DECREF(start_response);
    return write;
}

static PyObject *
response_write(native_response *self, PyObject *data)
{
    PyObject *exchange = native_exchange_of(self);
    return exchange == NULL ? NULL : PyObject_CallMethodOneArg(exchange, name_exchange_write, data);
}

static PyMethodDef response_methods[] = {
    {"write", (PyCFunction)response_write, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef response_members[] = {
    {"status", T_OBJECT, offsetof(native_response, status), READONLY, NULL},
    {"headers", T_OBJECT, offsetof(native_response, headers), READONLY, NULL},
    {"sent", T_PYSSIZET, offsetof(native_response, sent), READONLY, NULL},
    {"error", T_NONE, 0, READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject native_response_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ostler._native.Response",
    .tp_basicsize = sizeof(native_response),
    .tp_dealloc = (destructor)response_dealloc,
    .tp_call = (ternaryfunc)response_call,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_methods = response_methods,
    .tp_members = response_members,
};

/* -- what Python goes on with --------------------------------------------------------------------------------- */

/* The exception that is set, which is cleared, with its traceback: a new reference. */
PyObject *
native_take_error(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

/* Raise an exception as if it had not been caught: no entry is added to its traceback. */
static PyObject *
raise_again(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030c0000
    PyErr_SetRaisedException(Py_NewRef(error));
#else
    PyErr_Restore(Py_NewRef(Py_TYPE(error)), Py_NewRef(error), PyException_GetTraceback(error));
#endif
    return NULL;
}

/* Call close() of what an app has returned, if it has one (PEP 3333); -1 with an exception. */
int
native_close(PyObject *result)
{
    PyObject *close = PyObject_GetAttr(result, name_close);
    if (close == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    PyObject *done = close == Py_None ? Py_NewRef(close) : PyObject_CallNoArgs(close);
    Py_DECREF(close);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

native_begun *
native_new_begun(void)
{
    native_begun *self = PyObject_GC_New(native_begun, &native_begun_type); /* who hands it out tracks it */
    if (self == NULL)
        return NULL;
    self->result = self->iterator = self->part = self->error = self->close_error = NULL;
    self->closed = 0;
    return self;
}

static void
begun_dealloc(native_begun *self)
{
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->result);
    Py_XDECREF(self->iterator);
    Py_XDECREF(self->part);
    Py_XDECREF(self->error);
    Py_XDECREF(self->close_error);
    PyObject_GC_Del(self);
}

static int
begun_traverse(native_begun *self, visitproc visit, void *arg)
{
    Py_VISIT(self->result);
    Py_VISIT(self->iterator);
    Py_VISIT(self->part);
    Py_VISIT(self->error);
    Py_VISIT(self->close_error);
    return 0;
}

static PyObject *
begun_call(native_begun *self, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(keywords))
{
    if (self->result == NULL)
        return raise_again(self->error);
    bool is_untouched = self->iterator == NULL && self->error == NULL && self->close_error == NULL;
    return Py_NewRef(is_untouched ? self->result : (PyObject *)self);
}

static PyObject *
begun_iter(native_begun *self)
{
    if (self->iterator == NULL && self->error != NULL)
        return raise_again(self->error); /* not in begun_next, where a StopIteration would mean the end */
    return Py_NewRef(self);
}

static PyObject *
begun_next(native_begun *self)
{
    if (self->part != NULL) {
        PyObject *part = self->part;
        self->part = NULL;
        return part;
    }
    if (self->error != NULL)
        return raise_again(self->error);
    return self->iterator != NULL && !self->closed ? PyIter_Next(self->iterator) : NULL;
}

static PyObject *
begun_close(native_begun *self, PyObject *Py_UNUSED(none))
{
    if (self->close_error != NULL)
        return raise_again(self->close_error);
    if (!self->closed && native_close(self->result) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Let it raise an exception instead of what would come next. */
static PyObject *
begun_fail(native_begun *self, PyObject *error)
{
    Py_CLEAR(self->part);
    Py_XSETREF(self->error, Py_NewRef(error));
    Py_RETURN_NONE;
}

static PyMethodDef begun_methods[] = {
    {"close", (PyCFunction)begun_close, METH_NOARGS, NULL},
    {"fail", (PyCFunction)begun_fail, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject native_begun_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ostler._native.Begun",
    .tp_basicsize = sizeof(native_begun),
    .tp_dealloc = (destructor)begun_dealloc,
    .tp_traverse = (traverseproc)begun_traverse,
    .tp_call = (ternaryfunc)begun_call,
    .tp_iter = (getiterfunc)begun_iter,
    .tp_iternext = (iternextfunc)begun_next,
    .tp_methods = begun_methods,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
};

int
native_add_responses(PyObject *module)
{
    static const native_text names[] = {{&name_start_response, "start_response"},
                                        {&name_write, "write"},
                                        {&name_exchange_write, "_write"},
                                        {&name_close, "close"}};
    if (native_intern(names, sizeof names / sizeof *names) < 0)
        return -1;
    if (PyType_Ready(&native_response_type) < 0 || PyType_Ready(&native_begun_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Response", (PyObject *)&native_response_type) < 0 ||
                   PyModule_AddObjectRef(module, "Begun", (PyObject *)&native_begun_type) < 0
               ? -1
               : 0;
}
