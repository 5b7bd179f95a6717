/* The functions and types of the extension module `ostler._native`, by the file in which they are. */

#ifndef OSTLER_NATIVE_H
#define OSTLER_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* module.c */
typedef struct {
    PyObject **object;
    const char *text;
} native_text;

/* Fill the objects with interned strings; -1 with an exception. */
int native_intern(const native_text *texts, size_t count);

/* Where the attribute of a slot (`__slots__`) is in objects of a class; -1 with an exception. */
Py_ssize_t native_place_of(PyTypeObject *type, const char *name);

/* For a list of such attributes X(class, attribute) in a struct with the classes, as CLASS_type: the members
 * CLASS_ATTRIBUTE, and how a function that returns bool fills those of `self`. */
#define NATIVE_DECLARE_PLACE(type, name) Py_ssize_t type##_##name;
#define NATIVE_FIND_PLACE(type, name)                                                                               \
    if ((self->type##_##name = native_place_of(self->type##_type, #name)) < 0)                                      \
        return false;

/* The object that is there, or NULL. */
#define NATIVE_AT(object, place) (*(PyObject **)((char *)(object) + (place)))

/* orphan_fork.c */
PyObject *native_fork_orphan(PyObject *module, PyObject *own_group);

/* request.c */
typedef struct native_rules native_rules;

typedef struct {
    uint16_t name, name_size, value, value_size; /* where in the data, and how long */
    int16_t entry;                               /* of the name, in `names` of the rules; -1: it has none */
} native_field;

typedef struct {
    PyObject_VAR_HEAD
    PyObject *data; /* bytes: the whole request */
    native_rules *rules;
    PyObject *method; /* str */
    PyObject *head;   /* ostler.http1.head.Head, made when it is asked for; or NULL */
    uint16_t target, target_end, path_end, block; /* where they begin and end; `block` is that of Head */
    uint16_t host;                                /* which field is Host */
    uint16_t body;                                /* where it begins; it ends with the data */
    bool has_escapes;                             /* in the path */
    bool https;
    char keep_alive;
    native_field fields[]; /* Py_SIZE */
} native_request;

extern PyTypeObject native_request_type;
extern PyTypeObject native_rules_type;
/* The request that the bytes are, or None; NULL with an exception. A new reference. */
PyObject *native_request_of(PyObject *data, native_rules *rules);
PyObject *native_ordinary_request(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *native_request_environ(native_request *self, PyObject *template);
int native_add_requests(PyObject *module);

/* receive.c */
int native_add_receiving(PyObject *module);

/* response.c */

/* start_response of a request, and what the app has said by it. */
typedef struct {
    PyObject_HEAD
    PyObject *make_exchange; /* (request, connection): an ostler.wsgi.exchange.Exchange */
    native_request *request;
    PyObject *connection; /* NULL: the answer has ended */
    PyObject *exchange;   /* goes on with the request in Python; or NULL */
    PyObject *status;     /* str; NULL: the app has not called it */
    PyObject *headers;    /* the app's list */
    char *head;           /* status line and fields, each with its line end */
    Py_ssize_t head_size, head_room;
    Py_ssize_t length; /* Content-Length; -1: there is none */
    Py_ssize_t sent;   /* bytes of the body */
    int code;
    char is_whole; /* the whole answer was sent */
    char inline_head[768];
} native_response;

/* An app that goes on with a request that was begun here, and the iterable that it returns. */
typedef struct {
    PyObject_HEAD
    PyObject *result;      /* what the app has returned; NULL: it has raised `error` */
    PyObject *iterator;    /* of `result`; NULL: it was not asked for one */
    PyObject *part;        /* taken from it, and not sent; or NULL */
    PyObject *error;       /* what the iterator has raised, or the app; or NULL */
    PyObject *close_error; /* what close() has raised; or NULL */
    char closed;           /* close() was called */
} native_begun;

extern PyTypeObject native_response_type;
extern PyTypeObject native_begun_type;
native_response *native_new_response(PyObject *make_exchange, native_request *request, PyObject *connection);
native_begun *native_new_begun(void);
PyObject *native_exchange_of(native_response *self);
int native_close(PyObject *result);
PyObject *native_take_error(void);
int native_add_responses(PyObject *module);

/* exchange.c */
PyObject *native_note_fork(PyObject *module, PyObject *none);
int native_add_exchanges(PyObject *module);

/* -- characters ----------------------------------------------------------------------------------------------- */

/* Sets of characters, and those in which one is; filled by native_add_requests. */
enum { NATIVE_UPPER = 1, NATIVE_NAME = 2, NATIVE_VALUE = 4, NATIVE_TARGET = 8, NATIVE_HOST = 16, NATIVE_TOKEN = 32 };
extern uint8_t native_kinds[256] __attribute__((visibility("hidden")));

/* A decimal number of at most so many digits, which must not be more than 18; -1: it is none. */
static inline Py_ssize_t
native_number(const char *text, size_t size, size_t most_digits)
{
    if (size == 0 || size > most_digits)
        return -1;
    Py_ssize_t number = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        number = number * 10 + (text[i] - '0');
    }
    return number;
}

static inline char
native_lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

static inline bool
native_equals_lower(const char *text, size_t size, const char *lower_text)
{
    if (size != strlen(lower_text))
        return false;
    for (size_t i = 0; i < size; i++)
        if (native_lower(text[i]) != lower_text[i])
            return false;
    return true;
}

#endif
