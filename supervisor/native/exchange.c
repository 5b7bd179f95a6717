/* Ordinary exchanges: from a request that is received to its answer that is sent, and their accounting.
 *
 * `OrdinaryRunner.run` does what `workers/wsgi_runner.py` and `wsgi/exchange.py` do, which are the reference, for
 * a request of request.c with an answer of response.c that goes out in one send. It has no code for anything else,
 * such as errors, slow clients and answers in parts: Python begins the request instead, or goes on with it.
 */

#include "native.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

/* -- request slots -------------------------------------------------------------------------------------------- */

/* The memory of an ostler.scoreboard.request_slot.RequestSlot. */
typedef struct {
    PyObject_HEAD
    Py_buffer words, text, counts;
    char is_mapped;
} slot_memory;

static void
unmap(slot_memory *self)
{
    if (!self->is_mapped)
        return;
    self->is_mapped = 0;
    PyBuffer_Release(&self->words);
    PyBuffer_Release(&self->text);
    PyBuffer_Release(&self->counts);
}

static void
slot_memory_dealloc(slot_memory *self)
{
    unmap(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *
slot_memory_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    slot_memory *self = (slot_memory *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(arguments, "w*w*w*", &self->words, &self->text, &self->counts)) {
        Py_DECREF(self);
        return NULL;
    }
    self->is_mapped = 1;
    return (PyObject *)self;
}

static PyObject *
slot_memory_unmap(slot_memory *self, PyObject *Py_UNUSED(none))
{
    unmap(self);
    Py_RETURN_NONE;
}

static PyMethodDef slot_memory_methods[] = {
    {"unmap", (PyCFunction)slot_memory_unmap, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject slot_memory_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ostler._native.SlotMemory",
    .tp_basicsize = sizeof(slot_memory),
    .tp_dealloc = (destructor)slot_memory_dealloc,
    .tp_new = slot_memory_new,
    .tp_methods = slot_memory_methods,
    .tp_flags = Py_TPFLAGS_DEFAULT,
};

/* -- the runner ----------------------------------------------------------------------------------------------- */

#define QUICK 4096 /* durations below this many 1.024 us have their histogram's word in a table */

/* What `run` returns. */
enum { NOT_BEGUN, ANSWERED, UNFINISHED };

/* Attributes that are read or written directly, by where they are in an object with __slots__. */
#define PLACES(X)                                                                                                   \
    X(connection, parser) X(connection, output) X(connection, violation) X(connection, direct) X(connection, fd)     \
    X(connection, template) X(connection, idle_since) X(connection, answered_at)                                    \
    X(parser, requests) X(slot, memory) X(slot, method) X(slot, target) X(slot, unfinished)

/* Numbers of ostler.scoreboard.layout. */
#define LAYOUT(X)                                                                                                   \
    X(STARTED) X(METHOD_LENGTH) X(PATH_LENGTH) X(METHOD_SIZE) X(PATH_SIZE) X(STATUS_CLASSES) X(BYTES_SENT)

typedef struct {
    PyObject_HEAD
    PyObject *app, *make_exchange, *date;
    PyTypeObject *connection_type, *parser_type, *slot_type, *file_wrapper;
    PLACES(NATIVE_DECLARE_PLACE)
#define DECLARE_LAYOUT(name) Py_ssize_t name;
    LAYOUT(DECLARE_LAYOUT)
    uint16_t quick[QUICK];
    long long long_request;    /* ns; what takes longer may be interrupted */
    long long most_of_average; /* ns; what takes longer counts as this in the average */
    Py_ssize_t join_limit;     /* bytes of a body that are sent together with the head */
    char logs, counts_down, averages, is_exact;
} runner_object;

static PyObject *name_keep_connections, *name_average, *name_lines, *name_note_waiting, *name_log_request;
static PyObject *name_count_down, *name_send, *name_map_memory, *name_make_template, *text_empty, *bytes_empty;
/* This process was forked by the app, so it is no worker, and must not send. */
static bool is_forked;

PyObject *
native_note_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    is_forked = true;
    Py_RETURN_NONE;
}

static int64_t
monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The first of the connection's requests, if it is the only one and ordinary, and so is the connection. Borrowed. */
static native_request *
ordinary_request_of(runner_object *self, PyObject *connection)
{
    PyObject *parser = NATIVE_AT(connection, self->connection_parser);
    PyObject *output = NATIVE_AT(connection, self->connection_output);
    if (parser == NULL || !PyObject_TypeCheck(parser, self->parser_type) || output == NULL ||
        NATIVE_AT(connection, self->connection_direct) != Py_True ||
        NATIVE_AT(connection, self->connection_violation) != Py_None)
        return NULL;
    PyObject *requests = NATIVE_AT(parser, self->parser_requests);
    if (requests == NULL || !PyList_CheckExact(requests) || PyList_GET_SIZE(requests) != 1)
        return NULL;
    PyObject *request = PyList_GET_ITEM(requests, 0);
    if (!Py_IS_TYPE(request, &native_request_type) || !((native_request *)request)->keep_alive ||
        PyUnicode_CompareWithASCIIString(((native_request *)request)->method, "HEAD") == 0)
        return NULL;
    if (output != Py_None && PyObject_IsTrue(output) != 0) {
        PyErr_Clear();
        return NULL;
    }
    return (native_request *)request;
}

static inline uint64_t *
word(Py_buffer *words, Py_ssize_t number)
{
    return (uint64_t *)words->buf + number;
}

/* Show that a request is in the app; as RequestSlot.begin. */
static void
begin(runner_object *self, PyObject *slot, slot_memory *memory, native_request *request, int64_t now)
{
    /* Readers take the text for valid only while STARTED stays the same, so the text is changed behind it. */
    __atomic_store_n(word(&memory->words, self->STARTED), 0, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    char *text = memory->text.buf;
    Py_ssize_t size = PyUnicode_GET_LENGTH(request->method); /* at most 20 upper-case letters */
    memcpy(text, PyUnicode_1BYTE_DATA(request->method), (size_t)size);
    memset(text + size, 0, (size_t)(self->METHOD_SIZE - size));
    *word(&memory->words, self->METHOD_LENGTH) = (uint64_t)size;
    size = request->target_end - request->target;
    if (size > self->PATH_SIZE)
        size = self->PATH_SIZE;
    memcpy(text + self->METHOD_SIZE, PyBytes_AS_STRING(request->data) + request->target, (size_t)size);
    *word(&memory->words, self->PATH_LENGTH) = (uint64_t)size;
    /* RequestSlot.begin will not take the text for that of the request that it has shown last. */
    Py_XSETREF(NATIVE_AT(slot, self->slot_method), Py_NewRef(text_empty));
    Py_XSETREF(NATIVE_AT(slot, self->slot_target), Py_NewRef(bytes_empty));
    __atomic_store_n(word(&memory->words, self->STARTED), (uint64_t)now, __ATOMIC_RELEASE);
}

/* Send an answer whose body is all in one part; -1 with an exception: the client is gone. What the client does not take
 * at once is kept by the connection. */
static int
send_whole(runner_object *self, native_response *response, PyObject *connection, PyObject *body)
{
    PyObject *lines = PyObject_GetAttr(self->date, name_lines);
    long fd = PyLong_AsLong(NATIVE_AT(connection, self->connection_fd));
    if (PyErr_Occurred() || !PyBytes_Check(lines)) {
        Py_XDECREF(lines);
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "the date's lines must be bytes");
        return -1;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(body);
    char own[64];
    int own_size = 0;
    if (response->length < 0)
        own_size = PyOS_snprintf(own, sizeof own, "Content-Length: %zd\r\n", size);
    struct iovec parts[] = {
        {response->head, (size_t)response->head_size},
        {own, (size_t)own_size},
        {PyBytes_AS_STRING(lines), (size_t)PyBytes_GET_SIZE(lines)},
        {"\r\n", 2},
        {PyBytes_AS_STRING(body), (size_t)size},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = sizeof parts / sizeof *parts};
    size_t whole = 0;
    for (size_t i = 0; i < message.msg_iovlen; i++)
        whole += parts[i].iov_len;
    response->is_whole = 1;
    response->sent = size;
    ssize_t sent = sendmsg((int)fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    int result = 0;
    if (sent != (ssize_t)whole) {
        /* Also after an error: sending again finds it, and Python knows what it means. */
        PyObject *rest = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)whole - (sent < 0 ? 0 : sent));
        result = -1;
        if (rest != NULL) {
            char *to = PyBytes_AS_STRING(rest);
            size_t skip = sent < 0 ? 0 : (size_t)sent;
            for (size_t i = 0; i < message.msg_iovlen; i++) {
                size_t begins = skip < parts[i].iov_len ? skip : parts[i].iov_len;
                memcpy(to, (char *)parts[i].iov_base + begins, parts[i].iov_len - begins);
                to += parts[i].iov_len - begins;
                skip -= begins;
            }
            PyObject *done = PyObject_CallMethodOneArg(connection, name_send, rest);
            result = done == NULL ? -1 : 0;
            Py_XDECREF(done);
            Py_DECREF(rest);
        }
    }
    Py_DECREF(lines);
    return result;
}

static bool
is_whole_body(runner_object *self, native_response *response, PyObject *body)
{
    return PyBytes_CheckExact(body) && PyBytes_GET_SIZE(body) <= self->join_limit &&
           (response->length < 0 || response->length == PyBytes_GET_SIZE(body));
}

/* Send what the app has returned. True: all of it is sent and close() was called. False: Python has to go on with
 * `begun`, into which the result was taken over, and no exception is set. */
static bool
answer(runner_object *self, native_response *response, PyObject *connection, native_begun *begun)
{
    PyObject *result = begun->result;
    if (response->exchange != NULL || is_forked)
        return false;
    if (PyList_CheckExact(result) || PyTuple_CheckExact(result)) {
        if (response->status == NULL || PySequence_Fast_GET_SIZE(result) != 1)
            return false;
        PyObject *body = PySequence_Fast_GET_ITEM(result, 0);
        if (!is_whole_body(self, response, body))
            return false;
        Py_INCREF(body);
        int failed = send_whole(self, response, connection, body);
        Py_DECREF(body);
        if (failed)
            begun->error = native_take_error();
        return !failed;
    }
    /* One part of the announced length, as Flask and Django answer. A generator may call start_response later. */
    if (response->status == NULL ? !PyGen_CheckExact(result) : response->length <= 0)
        return false;
    if (Py_TYPE(result) == self->file_wrapper)
        return false;
    if ((begun->iterator = PyObject_GetIter(result)) == NULL) {
        begun->error = native_take_error();
        return false;
    }
    do {
        Py_XSETREF(begun->part, PyIter_Next(begun->iterator));
        if (begun->part == NULL) {
            begun->error = PyErr_Occurred() ? native_take_error() : NULL;
            return false;
        }
    } while (PyBytes_CheckExact(begun->part) && PyBytes_GET_SIZE(begun->part) == 0);
    if (response->status == NULL || response->exchange != NULL || is_forked || response->length <= 0 ||
        !is_whole_body(self, response, begun->part))
        return false;
    if (send_whole(self, response, connection, begun->part) < 0) {
        begun->error = native_take_error();
        Py_CLEAR(begun->part);
        return false;
    }
    /* Behind its end there may be empty parts, and more than was announced, which is not sent. */
    do
        Py_XSETREF(begun->part, PyIter_Next(begun->iterator));
    while (begun->part != NULL && PyBytes_CheckExact(begun->part) && PyBytes_GET_SIZE(begun->part) == 0);
    if (PyErr_Occurred()) {
        begun->error = native_take_error();
        return false;
    }
    if (begun->part != NULL && !PyBytes_CheckExact(begun->part))
        return false;
    begun->closed = 1;
    Py_CLEAR(response->connection); /* the answer has ended: write() in close() is an error */
    if (native_close(result) < 0) {
        begun->close_error = native_take_error();
        return false;
    }
    return true;
}

/* Let Python go on: what `WsgiRunner._run` needs is in `slot.unfinished`. */
static PyObject *
unfinished(runner_object *self, PyObject *slot, native_response *response, PyObject *environ, native_begun *begun,
           int64_t started)
{
    PyObject *exchange = native_exchange_of(response);
    if (exchange == NULL) {
        /* Maybe by an exception that was meant for a request which takes too long: that comes only once. */
        Py_CLEAR(begun->part);
        Py_XSETREF(begun->error, native_take_error());
        if ((exchange = native_exchange_of(response)) == NULL)
            return NULL;
    }
    PyObject *rest = Py_BuildValue("(OOOOL)", response->request, exchange, environ, begun, (long long)started);
    if (rest == NULL)
        return NULL;
    PyObject_GC_Track(begun); /* only now others see it */
    Py_XSETREF(NATIVE_AT(slot, self->slot_unfinished), rest);
    return PyLong_FromLong(UNFINISHED);
}

/* Add to the words of the slot what RequestSlot.count does. */
static void
count(runner_object *self, slot_memory *memory, native_response *response, int64_t took)
{
    *word(&memory->counts, self->STATUS_CLASSES + response->code / 100) += 1;
    *word(&memory->counts, self->quick[took >> 10]) += 1;
    *word(&memory->counts, self->BYTES_SENT) += (uint64_t)response->sent;
}

static bool
call(PyObject *object, PyObject *name, PyObject *const *arguments, size_t size)
{
    PyObject *all[5] = {object};
    for (size_t i = 0; i < size; i++)
        all[i + 1] = arguments[i];
    PyObject *done = PyObject_VectorcallMethod(name, all, size + 1, NULL);
    Py_XDECREF(done);
    return done != NULL;
}

static bool
log_request(PyObject *runner, native_response *response, PyObject *environ, int64_t took)
{
    PyObject *time = PyLong_FromLongLong(took);
    if (time == NULL)
        return false;
    PyObject *arguments[] = {(PyObject *)response->request, (PyObject *)response, environ, time};
    bool done = call(runner, name_log_request, arguments, 4);
    Py_DECREF(time);
    return done;
}

/* A moving average, as in workers/wsgi_runner.py. */
static bool
take_into_average(runner_object *self, PyObject *runner, int64_t took)
{
    PyObject *average = PyObject_GetAttr(runner, name_average);
    if (average == NULL)
        return false;
    int64_t before = PyLong_AsLongLong(average);
    Py_DECREF(average);
    if (before == -1 && PyErr_Occurred())
        return false;
    int64_t counted = took < self->most_of_average ? took : self->most_of_average;
    PyObject *after = PyLong_FromLongLong(before + ((counted - before) >> 3));
    if (after == NULL)
        return false;
    int failed = PyObject_SetAttr(runner, name_average, after);
    Py_DECREF(after);
    return !failed;
}

/* When the answer was given, and all that is counted of it. */
static bool
finish(runner_object *self, PyObject *runner, PyObject *connection, slot_memory *memory, native_response *response,
       PyObject *environ, int64_t took, int64_t ended)
{
    PyObject *now = PyLong_FromLongLong(ended);
    if (now == NULL)
        return false;
    Py_XSETREF(NATIVE_AT(connection, self->connection_idle_since), Py_NewRef(now));
    Py_XSETREF(NATIVE_AT(connection, self->connection_answered_at), now);
    count(self, memory, response, took);
    return (!self->logs || log_request(runner, response, environ, took)) &&
           (!self->counts_down || call(runner, name_count_down, NULL, 0)) &&
           (!self->averages || take_into_average(self, runner, took));
}

/* The app was called. Send its answer and count it, or let Python do what is left of that. */
static PyObject *
end(runner_object *self, PyObject *runner, PyObject *connection, PyObject *slot, slot_memory *memory,
    native_response *response, PyObject *environ, native_begun *begun, int64_t started)
{
    if (begun->result == NULL || !answer(self, response, connection, begun))
        return unfinished(self, slot, response, environ, begun, started);
    if (memory->is_mapped) {
        __atomic_store_n(word(&memory->words, self->STARTED), 0, __ATOMIC_RELEASE);
        int64_t ended = monotonic(), took = ended - started;
        PyObject *output = NATIVE_AT(connection, self->connection_output);
        if (took >= 0 && took >> 10 < QUICK && took <= self->long_request &&
            (output == Py_None || PyObject_Not(output) == 1)) {
            bool done = finish(self, runner, connection, memory, response, environ, took, ended);
            return done ? PyLong_FromLong(ANSWERED) : NULL;
        }
    }
    /* All is sent; the rest depends on how long it took, or on what the connection keeps. */
    Py_CLEAR(begun->iterator);
    Py_CLEAR(begun->part);
    Py_XSETREF(begun->result, PyTuple_New(0));
    return begun->result == NULL ? NULL : unfinished(self, slot, response, environ, begun, started);
}

/* Serve a request that was taken from the connection's list. */
static PyObject *
serve(runner_object *self, PyObject *runner, PyObject *connection, PyObject *slot, slot_memory *memory,
      native_request *request, PyObject *environ, int64_t started)
{
    native_response *response = native_new_response(self->make_exchange, request, connection);
    native_begun *begun = native_new_begun();
    PyObject *outcome = NULL;
    if (response != NULL && begun != NULL) {
        begin(self, slot, memory, request, started);
        PyObject *arguments[] = {NULL, environ, (PyObject *)response};
        begun->result = PyObject_Vectorcall(self->app, arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (begun->result == NULL)
            begun->error = native_take_error();
        outcome = end(self, runner, connection, slot, memory, response, environ, begun, started);
        Py_CLEAR(response->connection);
    }
    Py_XDECREF(begun);
    Py_XDECREF(response);
    return outcome;
}

/* Take the request from the connection's list and serve it, unless it is to be left to Python. */
static PyObject *
take(runner_object *self, PyObject *runner, PyObject *connection, PyObject *slot, slot_memory *memory,
     native_request *request, PyObject *prompt_until)
{
    int64_t prompt = PyLong_AsLongLong(prompt_until);
    if (prompt == -1 && PyErr_Occurred())
        return NULL;
    PyObject *template = NATIVE_AT(connection, self->connection_template);
    if (template == NULL || !PyDict_CheckExact(template))
        return PyLong_FromLong(NOT_BEGUN);
    PyObject *environ = native_request_environ(request, template);
    if (environ == NULL)
        return NULL;
    PyObject *outcome = NULL, *now = NULL;
    int64_t started = monotonic();
    if (started > prompt) {
        if (self->is_exact) {
            outcome = PyLong_FromLong(NOT_BEGUN);
            goto done;
        }
        if ((now = PyLong_FromLongLong(started)) == NULL)
            goto done;
        PyObject *each[] = {connection, slot, now, prompt_until};
        if (!call(runner, name_note_waiting, each, 4))
            goto done;
    }
    PyObject *requests = NATIVE_AT(NATIVE_AT(connection, self->connection_parser), self->parser_requests);
    if (PyList_SetSlice(requests, 0, 1, NULL) == 0)
        outcome = serve(self, runner, connection, slot, memory, request, environ, started);
done:
    Py_XDECREF(now);
    Py_DECREF(environ);
    return outcome;
}

static PyObject *
run(runner_object *self, PyObject *const *arguments, Py_ssize_t number)
{
    if (number != 4 || !PyObject_TypeCheck(arguments[1], self->connection_type) ||
        !PyObject_TypeCheck(arguments[2], self->slot_type)) {
        PyErr_SetString(PyExc_TypeError, "run(runner, connection, slot, prompt_until)");
        return NULL;
    }
    PyObject *runner = arguments[0], *connection = arguments[1], *slot = arguments[2];
    native_request *request = ordinary_request_of(self, connection);
    if (request == NULL || !Py_IS_TYPE(slot, self->slot_type)) /* the methods of a subclass may do more */
        return PyLong_FromLong(NOT_BEGUN);
    PyObject *keeps = PyObject_GetAttr(runner, name_keep_connections);
    if (keeps == NULL)
        return NULL;
    bool ends = keeps != Py_True;
    Py_DECREF(keeps);
    if (ends)
        return PyLong_FromLong(NOT_BEGUN);
    PyObject *outcome = NULL;
    Py_INCREF(request);
    if ((NATIVE_AT(connection, self->connection_template) != Py_None ||
         call(runner, name_make_template, &connection, 1)) &&
        (NATIVE_AT(slot, self->slot_memory) != Py_None || call(slot, name_map_memory, NULL, 0))) {
        PyObject *memory = NATIVE_AT(slot, self->slot_memory);
        if (memory != NULL && Py_IS_TYPE(memory, &slot_memory_type) && ((slot_memory *)memory)->is_mapped) {
            Py_INCREF(memory);
            outcome = take(self, runner, connection, slot, (slot_memory *)memory, request, arguments[3]);
            Py_DECREF(memory);
        }
        else
            outcome = PyLong_FromLong(NOT_BEGUN);
    }
    Py_DECREF(request);
    return outcome;
}

/* -- making one ----------------------------------------------------------------------------------------------- */

static Py_ssize_t
number_of(PyObject *object, const char *name)
{
    PyObject *attribute = PyObject_GetAttrString(object, name);
    if (attribute == NULL)
        return -1;
    Py_ssize_t number = PyLong_AsSsize_t(attribute);
    Py_DECREF(attribute);
    return number;
}

static void
runner_dealloc(runner_object *self)
{
    Py_XDECREF(self->app);
    Py_XDECREF(self->make_exchange);
    Py_XDECREF(self->date);
    Py_XDECREF(self->connection_type);
    Py_XDECREF(self->parser_type);
    Py_XDECREF(self->slot_type);
    Py_XDECREF(self->file_wrapper);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static bool
fill(runner_object *self, PyObject *layout, PyObject *quick)
{
    PLACES(NATIVE_FIND_PLACE)
#define FIND_LAYOUT(name)                                                                                           \
    if ((self->name = number_of(layout, #name)) < 0)                                                                \
        return false;
    LAYOUT(FIND_LAYOUT)
    if (PyList_GET_SIZE(quick) != QUICK) {
        PyErr_SetString(PyExc_ValueError, "quick must have a word for each duration");
        return false;
    }
    for (Py_ssize_t i = 0; i < QUICK; i++) {
        long number = PyLong_AsLong(PyList_GET_ITEM(quick, i));
        if (number < 0 || number > UINT16_MAX)
            return false;
        self->quick[i] = (uint16_t)number;
    }
    return true;
}

static PyObject *
runner_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"app",        "make_exchange", "date",  "connection_type", "parser_type",
                            "slot_type",  "file_wrapper",  "layout", "quick",    "logs",            "counts_down",
                            "averages",   "is_exact",      "long_request", "most_of_average",
                            "join_limit", NULL};
    PyObject *app, *make_exchange, *date, *connection_type, *parser_type, *slot_type, *file_wrapper;
    PyObject *layout, *quick;
    int logs, counts_down, averages, is_exact;
    long long long_request, most_of_average;
    Py_ssize_t join_limit;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOO!O!O!O!OO!ppppLLn", names, &app, &make_exchange, &date,
                                     &PyType_Type, &connection_type, &PyType_Type, &parser_type,
                                     &PyType_Type, &slot_type, &PyType_Type, &file_wrapper, &layout, &PyList_Type,
                                     &quick, &logs, &counts_down, &averages, &is_exact, &long_request,
                                     &most_of_average, &join_limit))
        return NULL;
    runner_object *self = (runner_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->app = Py_NewRef(app);
    self->make_exchange = Py_NewRef(make_exchange);
    self->date = Py_NewRef(date);
    self->connection_type = (PyTypeObject *)Py_NewRef(connection_type);
    self->parser_type = (PyTypeObject *)Py_NewRef(parser_type);
    self->slot_type = (PyTypeObject *)Py_NewRef(slot_type);
    self->file_wrapper = (PyTypeObject *)Py_NewRef(file_wrapper);
    self->logs = (char)logs;
    self->counts_down = (char)counts_down;
    self->averages = (char)averages;
    self->is_exact = (char)is_exact;
    self->long_request = long_request;
    self->most_of_average = most_of_average;
    self->join_limit = join_limit;
    if (!fill(self, layout, quick)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyMethodDef runner_methods[] = {
    {"run", (PyCFunction)(void (*)(void))run, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject runner_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ostler._native.OrdinaryRunner",
    .tp_basicsize = sizeof(runner_object),
    .tp_dealloc = (destructor)runner_dealloc,
    .tp_new = runner_new,
    .tp_methods = runner_methods,
    .tp_flags = Py_TPFLAGS_DEFAULT,
};

int
native_add_exchanges(PyObject *module)
{
    static const native_text names[] = {{&name_keep_connections, "keep_connections"},
                                        {&name_average, "average"},
                                        {&name_lines, "lines"},
                                        {&name_note_waiting, "_note_waiting"},
                                        {&name_log_request, "_log_request"},
                                        {&name_count_down, "_count_down"},
                                        {&name_send, "send"},
                                        {&name_map_memory, "map_memory"},
                                        {&name_make_template, "_make_template"},
                                        {&text_empty, ""}};
    if (native_intern(names, sizeof names / sizeof *names) < 0)
        return -1;
    if ((bytes_empty = PyBytes_FromStringAndSize(NULL, 0)) == NULL)
        return -1;
    if (PyType_Ready(&slot_memory_type) < 0 || PyType_Ready(&runner_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "SlotMemory", (PyObject *)&slot_memory_type) < 0 ||
                   PyModule_AddObjectRef(module, "OrdinaryRunner", (PyObject *)&runner_type) < 0
               ? -1
               : 0;
}
