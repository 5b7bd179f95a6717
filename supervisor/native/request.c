/* Ordinary requests: recognizing them in what was received, and making their environ (PEP 3333).
 *
 * Only a conservative subset is recognized: a method of upper-case letters, a target in origin form, HTTP/1.1, one
 * Host, names of letters, digits and hyphens, visible ASCII characters, no field that means more to a server than
 * `Connection: keep-alive`, and at most one Content-Length, with a body that is there as a whole. Nothing else is said
 * about what is not recognized: Python's parser (`http1/request.py`), which is the reference, decides about that. So
 * nothing is accepted here that it refuses.
 */

#include "native.h"

#include <stddef.h>

/* -- characters ----------------------------------------------------------------------------------------------- */

uint8_t native_kinds[256];

static void
fill_kinds(void)
{
    for (int c = 0x20; c < 0x7f; c++)
        native_kinds[c] = NATIVE_VALUE | (c > 0x20 && c != '#' ? NATIVE_TARGET : 0);
    native_kinds['\t'] = NATIVE_VALUE;
    for (int c = 'A'; c <= 'Z'; c++) {
        native_kinds[c] |= NATIVE_UPPER | NATIVE_NAME | NATIVE_HOST | NATIVE_TOKEN;
        native_kinds[c + 32] |= NATIVE_NAME | NATIVE_HOST | NATIVE_TOKEN;
    }
    for (int c = '0'; c <= '9'; c++)
        native_kinds[c] |= NATIVE_NAME | NATIVE_HOST | NATIVE_TOKEN;
    native_kinds['-'] |= NATIVE_NAME | NATIVE_HOST;
    native_kinds['.'] |= NATIVE_HOST;
    for (const char *c = "!#$%&'*+-.^_`|~"; *c; c++)
        native_kinds[(uint8_t)*c] |= NATIVE_TOKEN;
}

/* -- field names ---------------------------------------------------------------------------------------------- */

/* What a field means to the server. */
enum meaning { PLAIN, IS_HOST, IS_CONNECTION, IS_TYPE, IS_LENGTH, IS_SCHEME, NOT_ORDINARY };

#define LONGEST_NAME 255
#define LONGEST_REMEMBERED 52
#define NAMES 256 /* a power of two */

typedef struct {
    PyObject *key; /* the variable's name; NULL: nothing is here, or the app does not get the field */
    uint32_t hash;
    uint8_t size; /* 0: nothing is here */
    uint8_t meaning;
    char name[LONGEST_REMEMBERED];
} name_entry;

struct native_rules {
    PyObject_HEAD
    PyObject *rules;      /* ostler.http1.head.Rules */
    PyObject *parse_head; /* ostler.http1.head.parse_head */
    PyObject *schemes;    /* Rules.secure_scheme_headers: a dict, bytes by lower-case bytes */
    Py_ssize_t max_line, max_fields, max_field_size, max_body;
    int known; /* how many of `names` are filled */
    /* By the name as sent. Names repeat, also where values never do: a server sees some dozens of them. */
    name_entry names[NAMES];
};

static enum meaning
meaning_of(native_rules *self, const char *name, size_t size)
{
    PyObject *scheme, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(self->schemes, &position, &scheme, &value))
        if (native_equals_lower(name, size, PyBytes_AS_STRING(scheme)))
            return IS_SCHEME;
    static const struct {
        const char *name;
        enum meaning meaning;
    } known[] = {
        {"host", IS_HOST},
        {"connection", IS_CONNECTION},
        {"content-type", IS_TYPE},
        {"content-length", IS_LENGTH},
        {"transfer-encoding", NOT_ORDINARY},
        {"expect", NOT_ORDINARY},
        {"upgrade", NOT_ORDINARY},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (native_equals_lower(name, size, known[i].name))
            return known[i].meaning;
    return PLAIN;
}

/* The variable for a name: a new reference, or NULL with or without an exception; without: the app does not get it. */
static PyObject *
variable_of(const char *name, size_t size)
{
    char text[5 + LONGEST_NAME] = "HTTP_";
    if (native_equals_lower(name, size, "content-type"))
        return PyUnicode_InternFromString("CONTENT_TYPE");
    if (native_equals_lower(name, size, "content-length"))
        return PyUnicode_InternFromString("CONTENT_LENGTH");
    if (native_equals_lower(name, size, "proxy"))
        return NULL; /* httpoxy (CVE-2016-5385), as in wsgi/environ.py */
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        text[5 + i] = c == '-' ? '_' : c >= 'a' && c <= 'z' ? (char)(c - 32) : c;
    }
    return PyUnicode_FromStringAndSize(text, (Py_ssize_t)size + 5);
}

/* The entry of a name; NULL, with or without an exception, if it can't be remembered. */
static name_entry *
entry_of(native_rules *self, const char *name, size_t size, uint32_t hash)
{
    if (size > LONGEST_REMEMBERED)
        return NULL;
    uint32_t at = hash & (NAMES - 1);
    name_entry *entry;
    while ((entry = &self->names[at])->size) {
        if (entry->hash == hash && entry->size == size && memcmp(entry->name, name, size) == 0)
            return entry;
        at = (at + 1) & (NAMES - 1);
    }
    if (self->known >= NAMES * 3 / 4)
        return NULL;
    PyObject *key = variable_of(name, size);
    if (key == NULL && PyErr_Occurred())
        return NULL;
    if (key != NULL)
        PyUnicode_InternInPlace(&key);
    self->known++;
    entry->key = key;
    entry->hash = hash;
    entry->meaning = (uint8_t)meaning_of(self, name, size);
    memcpy(entry->name, name, size);
    entry->size = (uint8_t)size; /* last: it makes the entry valid */
    return entry;
}

static int
rules_traverse(native_rules *self, visitproc visit, void *arg)
{
    Py_VISIT(self->rules);
    Py_VISIT(self->parse_head);
    Py_VISIT(self->schemes);
    return 0;
}

static int
rules_clear(native_rules *self)
{
    Py_CLEAR(self->rules);
    return 0;
}

static void
rules_dealloc(native_rules *self)
{
    PyObject_GC_UnTrack(self);
    for (int i = 0; i < NAMES; i++)
        Py_XDECREF(self->names[i].key);
    Py_XDECREF(self->rules);
    Py_XDECREF(self->parse_head);
    Py_XDECREF(self->schemes);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *
rules_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"rules",          "parse_head", "schemes", "max_line", "max_fields",
                            "max_field_size", "max_body",   NULL};
    PyObject *rules, *parse_head, *schemes;
    Py_ssize_t max_line, max_fields, max_field_size, max_body;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOO!nnnn", names, &rules, &parse_head, &PyDict_Type,
                                     &schemes, &max_line, &max_fields, &max_field_size, &max_body))
        return NULL;
    PyObject *scheme, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(schemes, &position, &scheme, &value))
        if (!PyBytes_Check(scheme) || !PyBytes_Check(value)) {
            PyErr_SetString(PyExc_TypeError, "schemes must be bytes by bytes");
            return NULL;
        }
    native_rules *self = (native_rules *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if ((self->schemes = PyDict_Copy(schemes)) == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    self->rules = Py_NewRef(rules);
    self->parse_head = Py_NewRef(parse_head);
    self->max_line = max_line;
    self->max_fields = max_fields;
    self->max_field_size = max_field_size;
    self->max_body = max_body;
    return (PyObject *)self;
}

/* -- requests ------------------------------------------------------------------------------------------------- */

/* The most bytes of a request that is recognized: offsets are 16 bits. */
#define MOST 65535
#define MOST_FIELDS 128
#define MOST_METHOD 20
#define MOST_DIGITS 5 /* of MOST */

static PyObject *methods[8];
static const char *const method_names[8] = {"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", NULL};

static void
request_dealloc(native_request *self)
{
    Py_XDECREF(self->data);
    Py_XDECREF(self->rules);
    Py_XDECREF(self->method);
    Py_XDECREF(self->head);
    PyObject_Free(self);
}

static PyObject *
method_of(const char *text, size_t size)
{
    for (int i = 0; method_names[i] != NULL; i++)
        if (size == strlen(method_names[i]) && memcmp(text, method_names[i], size) == 0)
            return Py_NewRef(methods[i]);
    return PyUnicode_FromStringAndSize(text, (Py_ssize_t)size);
}

/* RFC 3986 section 3.2, but only names and IPv4 addresses, with a port of five digits at most. */
static bool
is_plain_host(const char *text, size_t size)
{
    size_t i = 0;
    while (i < size && native_kinds[(uint8_t)text[i]] & NATIVE_HOST)
        i++;
    if (i == 0)
        return false;
    if (i == size)
        return true;
    Py_ssize_t port = native_number(text + i + 1, size - i - 1, 5);
    return text[i] == ':' && port >= 0 && port <= 65535;
}

/* What a scan has found; `fields` has room for MOST_FIELDS. */
typedef struct {
    size_t method_end, target_end, path_end, block, host, body;
    Py_ssize_t count;
    bool has_escapes, https;
    native_field fields[MOST_FIELDS];
} scan;

/* Whether the data are one ordinary request. Sets no exception but MemoryError, and returns false then, too. */
static bool
scan_request(native_rules *rules, const char *data, size_t size, scan *found)
{
    if (size > MOST || size < 18)
        return false;
    /* Every loop below ends at the NUL behind the last byte at the latest, which is in none of the classes. */
    size_t at = 0;
    while (native_kinds[(uint8_t)data[at]] & NATIVE_UPPER)
        at++;
    found->method_end = at;
    if (at == 0 || at > MOST_METHOD || data[at] != ' ' || data[at + 1] != '/')
        return false;
    if (at == 7 && memcmp(data, "CONNECT", 7) == 0)
        return false;
    at++;
    found->path_end = 0;
    found->has_escapes = false;
    while (native_kinds[(uint8_t)data[at]] & NATIVE_TARGET) {
        if (data[at] == '?' && !found->path_end)
            found->path_end = at;
        else if (data[at] == '%' && !found->path_end)
            found->has_escapes = true;
        at++;
    }
    found->target_end = at;
    if (!found->path_end)
        found->path_end = at;
    if (size - at < 13 || memcmp(data + at, " HTTP/1.1\r\n", 11) != 0)
        return false;
    at += 9;
    if ((Py_ssize_t)at > rules->max_line)
        return false;
    found->block = at;
    at += 2;
    found->count = 0;
    found->host = MOST_FIELDS;
    found->https = false;
    bool insecure = false, has_type = false, has_length = false;
    Py_ssize_t body_size = 0;
    while (data[at] != '\r') {
        if (found->count == MOST_FIELDS || found->count == rules->max_fields)
            return false;
        native_field *one = &found->fields[found->count];
        size_t begin = at;
        uint32_t hash = 2166136261u; /* FNV-1a */
        while (native_kinds[(uint8_t)data[at]] & NATIVE_NAME)
            hash = (hash ^ (uint8_t)data[at++]) * 16777619u;
        if (at == begin || at - begin > LONGEST_NAME || data[at] != ':')
            return false;
        one->name = (uint16_t)begin;
        one->name_size = (uint16_t)(at - begin);
        at++;
        while (data[at] == ' ' || data[at] == '\t')
            at++;
        size_t value = at;
        while (native_kinds[(uint8_t)data[at]] & NATIVE_VALUE)
            at++;
        if (data[at] != '\r' || data[at + 1] != '\n' || (Py_ssize_t)(at - begin) > rules->max_field_size)
            return false;
        size_t end = at;
        while (end > value && (data[end - 1] == ' ' || data[end - 1] == '\t'))
            end--;
        one->value = (uint16_t)value;
        one->value_size = (uint16_t)(end - value);
        at += 2;
        const char *name = data + begin, *text = data + value;
        size_t name_size = one->name_size, length = end - value;
        name_entry *entry = entry_of(rules, name, name_size, hash ^ (hash >> 15));
        if (entry == NULL && PyErr_Occurred())
            return false;
        one->entry = entry != NULL ? (int16_t)(entry - rules->names) : -1;
        switch (entry != NULL ? (enum meaning)entry->meaning : meaning_of(rules, name, name_size)) {
        case PLAIN:
            break;
        case IS_HOST:
            if (found->host != MOST_FIELDS || !is_plain_host(text, length))
                return false;
            found->host = (size_t)found->count;
            break;
        case IS_CONNECTION:
            if (!native_equals_lower(text, length, "keep-alive"))
                return false;
            break;
        case IS_TYPE:
            if (has_type)
                return false;
            has_type = true;
            break;
        case IS_LENGTH:
            if (has_length || (length > 1 && text[0] == '0') ||
                (body_size = native_number(text, length, MOST_DIGITS)) < 0)
                return false;
            has_length = true;
            break;
        case IS_SCHEME: {
            PyObject *scheme, *wanted;
            Py_ssize_t position = 0;
            while (PyDict_Next(rules->schemes, &position, &scheme, &wanted))
                if (native_equals_lower(name, name_size, PyBytes_AS_STRING(scheme))) {
                    if ((size_t)PyBytes_GET_SIZE(wanted) == length &&
                        memcmp(PyBytes_AS_STRING(wanted), text, length) == 0)
                        found->https = true;
                    else
                        insecure = true;
                }
            break;
        }
        default:
            return false;
        }
        found->count++;
    }
    at += 2;
    found->body = at;
    return at <= size && data[at - 1] == '\n' && (Py_ssize_t)(size - at) == body_size && body_size <= rules->max_body &&
           found->host != MOST_FIELDS && !(found->https && insecure);
}

PyObject *
native_request_of(PyObject *data, native_rules *rules)
{
    const char *text = PyBytes_AS_STRING(data);
    scan found;
    if (!scan_request(rules, text, (size_t)PyBytes_GET_SIZE(data), &found)) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    native_request *self = PyObject_NewVar(native_request, &native_request_type, found.count);
    if (self == NULL)
        return NULL;
    self->data = Py_NewRef(data);
    self->rules = (native_rules *)Py_NewRef(rules);
    self->head = NULL;
    self->target = (uint16_t)(found.method_end + 1);
    self->target_end = (uint16_t)found.target_end;
    self->path_end = (uint16_t)found.path_end;
    self->block = (uint16_t)found.block;
    self->host = (uint16_t)found.host;
    self->body = (uint16_t)found.body;
    self->has_escapes = found.has_escapes;
    self->https = found.https;
    self->keep_alive = 1;
    memcpy(self->fields, found.fields, (size_t)found.count * sizeof(native_field));
    if ((self->method = method_of(text, found.method_end)) == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

PyObject *
native_ordinary_request(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(arguments[0]) || !PyObject_TypeCheck(arguments[1], &native_rules_type)) {
        PyErr_SetString(PyExc_TypeError, "ordinary_request(data: bytes, rules: RequestRules)");
        return NULL;
    }
    return native_request_of(arguments[0], (native_rules *)arguments[1]);
}

/* -- the environ ---------------------------------------------------------------------------------------------- */

#define KEYS(X)                                                                                                     \
    X(REQUEST_METHOD) X(RAW_URI) X(PATH_INFO) X(QUERY_STRING) X(SERVER_PROTOCOL) X(SCRIPT_NAME) X(SERVER_NAME)      \
    X(SERVER_PORT) X(HTTP_COOKIE)
#define DECLARE(name) static PyObject *key_##name;
KEYS(DECLARE)
static PyObject *key_input, *key_scheme, *text_https, *text_http11, *text_443, *text_80, *text_empty;
static PyObject *text_comma, *text_semicolon, *bytes_io;

static inline char *
text_at(native_request *self, size_t at)
{
    return PyBytes_AS_STRING(self->data) + at;
}

/* ASCII text of the data: a new str, or NULL with an exception. */
static PyObject *
text_of(native_request *self, size_t begin, size_t end)
{
    if (begin == end)
        return Py_NewRef(text_empty);
    PyObject *text = PyUnicode_New((Py_ssize_t)(end - begin), 127);
    if (text != NULL)
        memcpy(PyUnicode_1BYTE_DATA(text), text_at(self, begin), end - begin);
    return text;
}

static inline int
hex_value(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 55 : c >= 'a' && c <= 'f' ? c - 87 : -1;
}

static PyObject *
get_path(native_request *self, void *Py_UNUSED(closure))
{
    if (!self->has_escapes)
        return text_of(self, self->target, self->path_end);
    size_t size = (size_t)(self->path_end - self->target);
    const char *text = text_at(self, self->target);
    char *decoded = PyMem_Malloc(size);
    if (decoded == NULL)
        return PyErr_NoMemory();
    Py_ssize_t length = 0;
    for (size_t i = 0; i < size; i++) {
        int high, low;
        if (text[i] == '%' && i + 2 < size && (high = hex_value(text[i + 1])) >= 0 &&
            (low = hex_value(text[i + 2])) >= 0) {
            decoded[length++] = (char)(high << 4 | low);
            i += 2;
        }
        else
            decoded[length++] = text[i];
    }
    PyObject *path = PyUnicode_DecodeLatin1(decoded, length, NULL);
    PyMem_Free(decoded);
    return path;
}

/* `wsgi.input`. */
static PyObject *
input_of(native_request *self)
{
    Py_ssize_t size = PyBytes_GET_SIZE(self->data) - self->body;
    if (size == 0)
        return PyObject_CallNoArgs(bytes_io);
    PyObject *body = PyBytes_FromStringAndSize(text_at(self, self->body), size);
    if (body == NULL)
        return NULL;
    PyObject *input = PyObject_CallOneArg(bytes_io, body);
    Py_DECREF(body);
    return input;
}

/* Set a variable; takes the value's reference over, which may be NULL with an exception. */
static bool
set(PyObject *environ, PyObject *key, PyObject *value)
{
    if (value == NULL)
        return false;
    int failed = PyDict_SetItem(environ, key, value);
    Py_DECREF(value);
    return failed == 0;
}

/* Set the variable of a field; if it came before, both are joined (RFC 9110 section 5.3; cookies: RFC 6265, 5.4). */
static bool
set_field(native_request *self, PyObject *environ, native_field *one)
{
    PyObject *key = one->entry >= 0 ? Py_XNewRef(self->rules->names[one->entry].key)
                                    : variable_of(text_at(self, one->name), one->name_size);
    if (key == NULL)
        return !PyErr_Occurred();
    PyObject *value = text_of(self, one->value, (size_t)one->value + one->value_size);
    bool done = false;
    if (value != NULL) {
        Py_ssize_t before = PyDict_GET_SIZE(environ);
        PyObject *found = PyDict_SetDefault(environ, key, value);
        done = found != NULL;
        if (done && PyDict_GET_SIZE(environ) == before) {
            PyObject *separator = PyUnicode_Compare(key, key_HTTP_COOKIE) == 0 ? text_semicolon : text_comma;
            done = set(environ, key, PyUnicode_FromFormat("%U%U%U", found, separator, value));
        }
        Py_DECREF(value);
    }
    Py_DECREF(key);
    return done;
}

/* SERVER_NAME and SERVER_PORT by what the client calls the server, as `host_and_port` in wsgi/environ.py. */
static bool
set_server(native_request *self, PyObject *environ, PyObject *scheme)
{
    native_field *one = &self->fields[self->host];
    size_t begin = one->value, end = begin + one->value_size;
    char *colon = memchr(text_at(self, begin), ':', end - begin);
    size_t name_end = colon != NULL ? (size_t)(colon - text_at(self, 0)) : end;
    PyObject *port;
    if (colon != NULL)
        port = text_of(self, name_end + 1, end);
    else
        port = Py_NewRef(PyUnicode_Compare(scheme, text_https) == 0 ? text_443 : text_80);
    return set(environ, key_SERVER_PORT, port) && set(environ, key_SERVER_NAME, text_of(self, begin, name_end));
}

/* PATH_INFO without the place where the app is mounted. */
static bool
strip_mount(PyObject *environ, PyObject *mount)
{
    PyObject *path = PyDict_GetItemWithError(environ, key_PATH_INFO);
    if (path == NULL)
        return !PyErr_Occurred();
    Py_ssize_t size = PyUnicode_GET_LENGTH(mount), length = PyUnicode_GET_LENGTH(path);
    Py_ssize_t begins = PyUnicode_Tailmatch(path, mount, 0, length, -1);
    if (begins < 0)
        return false;
    if (!begins || (length > size && PyUnicode_READ_CHAR(path, size) != '/'))
        return true;
    return set(environ, key_PATH_INFO, PyUnicode_Substring(path, size, length));
}

static PyObject *
get_query(native_request *self, void *Py_UNUSED(closure))
{
    size_t query = self->path_end == self->target_end ? self->target_end : (size_t)self->path_end + 1;
    return text_of(self, query, self->target_end);
}

PyObject *
native_request_environ(native_request *self, PyObject *template)
{
    if (!PyDict_CheckExact(template)) {
        PyErr_SetString(PyExc_TypeError, "environ(template: dict)");
        return NULL;
    }
    PyObject *environ = PyDict_Copy(template);
    if (environ == NULL)
        return NULL;
    if (!(set(environ, key_REQUEST_METHOD, Py_NewRef(self->method)) &&
          set(environ, key_RAW_URI, text_of(self, self->target, self->target_end)) &&
          set(environ, key_PATH_INFO, get_path(self, NULL)) &&
          set(environ, key_QUERY_STRING, get_query(self, NULL)) &&
          set(environ, key_SERVER_PROTOCOL, Py_NewRef(text_http11)) &&
          set(environ, key_input, input_of(self)) &&
          (!self->https || set(environ, key_scheme, Py_NewRef(text_https)))))
        goto failed;
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++)
        if (!set_field(self, environ, &self->fields[i]))
            goto failed;
    PyObject *port = PyDict_GetItemWithError(environ, key_SERVER_PORT);
    PyObject *scheme = PyDict_GetItemWithError(environ, key_scheme);
    PyObject *mount = PyDict_GetItemWithError(environ, key_SCRIPT_NAME);
    if (port == NULL || scheme == NULL || mount == NULL || !PyUnicode_Check(port) || !PyUnicode_Check(scheme) ||
        !PyUnicode_Check(mount)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "SERVER_PORT, SCRIPT_NAME or wsgi.url_scheme is missing");
        goto failed;
    }
    if (PyUnicode_GET_LENGTH(port) == 0 && !set_server(self, environ, scheme))
        goto failed;
    if (PyUnicode_GET_LENGTH(mount) != 0 && !strip_mount(environ, mount))
        goto failed;
    return environ;
failed:
    Py_DECREF(environ);
    return NULL;
}

/* -- attributes ----------------------------------------------------------------------------------------------- */

static PyObject *
get_self(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self);
}

static PyObject *
get_constant(PyObject *Py_UNUSED(self), void *constant)
{
    return Py_NewRef((PyObject *)constant);
}

static PyObject *
get_length(native_request *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(PyBytes_GET_SIZE(self->data) - self->body);
}

static PyObject *
get_protocol(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    return Py_NewRef(text_http11);
}

static PyObject *
get_target(native_request *self, void *Py_UNUSED(closure))
{
    return PyBytes_FromStringAndSize(text_at(self, self->target), self->target_end - self->target);
}

static PyObject *
get_raw_uri(native_request *self, void *Py_UNUSED(closure))
{
    return text_of(self, self->target, self->target_end);
}

static PyObject *
get_head(native_request *self, void *Py_UNUSED(closure))
{
    if (self->head == NULL) {
        PyObject *block = PyBytes_FromStringAndSize(text_at(self, self->block), self->body - self->block);
        if (block == NULL)
            return NULL;
        native_rules *rules = self->rules;
        if (rules->rules == NULL) {
            PyErr_SetString(PyExc_ReferenceError, "the rules are gone");
            Py_DECREF(block);
            return NULL;
        }
        PyObject *head = PyObject_CallFunctionObjArgs(rules->parse_head, block, text_http11, rules->rules, NULL);
        Py_DECREF(block);
        if (self->head == NULL)
            self->head = head;
        else
            Py_XDECREF(head); /* another thread has made one meanwhile */
    }
    return Py_XNewRef(self->head);
}

static PyObject *
get_headers(native_request *self, void *closure)
{
    PyObject *head = get_head(self, closure);
    if (head == NULL)
        return NULL;
    PyObject *headers = PyObject_GetAttrString(head, "headers");
    Py_DECREF(head);
    return headers;
}

static PyGetSetDef request_attributes[] = {
    {"line", get_self, NULL, NULL, NULL},
    {"head", (getter)get_head, NULL, NULL, NULL},
    {"headers", (getter)get_headers, NULL, NULL, NULL},
    {"target", (getter)get_target, NULL, NULL, NULL},
    {"raw_uri", (getter)get_raw_uri, NULL, NULL, NULL},
    {"path", (getter)get_path, NULL, NULL, NULL},
    {"query", (getter)get_query, NULL, NULL, NULL},
    {"protocol", get_protocol, NULL, NULL, NULL},
    {"body", get_constant, NULL, NULL, Py_None},
    {"authority", get_constant, NULL, NULL, Py_None},
    {"length", (getter)get_length, NULL, NULL, NULL},
    {"complete", get_constant, NULL, NULL, Py_True},
    {"ordinary", get_constant, NULL, NULL, Py_True},
    {"upgrade", get_constant, NULL, NULL, Py_False},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef request_members[] = {
    {"method", T_OBJECT_EX, offsetof(native_request, method), READONLY, NULL},
    {"keep_alive", T_BOOL, offsetof(native_request, keep_alive), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef request_methods[] = {
    {"environ", (PyCFunction)native_request_environ, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject native_request_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ostler._native.Request",
    .tp_basicsize = offsetof(native_request, fields),
    .tp_itemsize = sizeof(native_field),
    .tp_dealloc = (destructor)request_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_methods = request_methods,
    .tp_members = request_members,
    .tp_getset = request_attributes,
};

PyTypeObject native_rules_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "ostler._native.RequestRules",
    .tp_basicsize = sizeof(native_rules),
    .tp_dealloc = (destructor)rules_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, /* the Python object of the rules refers to it */
    .tp_traverse = (traverseproc)rules_traverse,
    .tp_clear = (inquiry)rules_clear,
    .tp_new = rules_new,
};

/* The other interned texts. */
static const native_text constants[] = {
    {&key_input, "wsgi.input"}, {&key_scheme, "wsgi.url_scheme"},
    {&text_https, "https"},     {&text_http11, "HTTP/1.1"},
    {&text_443, "443"},         {&text_80, "80"},
    {&text_empty, ""},          {&text_comma, ","},
    {&text_semicolon, "; "},
};

int
native_add_requests(PyObject *module)
{
    fill_kinds();
#define INTERN(name)                                                                                                \
    if ((key_##name = PyUnicode_InternFromString(#name)) == NULL)                                                   \
        return -1;
    KEYS(INTERN)
    for (int i = 0; method_names[i] != NULL; i++)
        if ((methods[i] = PyUnicode_InternFromString(method_names[i])) == NULL)
            return -1;
    if (native_intern(constants, sizeof constants / sizeof *constants) < 0)
        return -1;
    PyObject *io = PyImport_ImportModule("io");
    if (io == NULL)
        return -1;
    bytes_io = PyObject_GetAttrString(io, "BytesIO");
    Py_DECREF(io);
    if (bytes_io == NULL || PyType_Ready(&native_request_type) < 0 || PyType_Ready(&native_rules_type) < 0)
        return -1;
    if (PyModule_AddObjectRef(module, "Request", (PyObject *)&native_request_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "RequestRules", (PyObject *)&native_rules_type);
}
