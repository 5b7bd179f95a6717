/* The extension module `ostler._native`. What is in it is said for Python in `_native.pyi`. */

#include "native.h"

int
native_intern(const native_text *texts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if ((*texts[i].object = PyUnicode_InternFromString(texts[i].text)) == NULL)
            return -1;
    return 0;
}

Py_ssize_t
native_place_of(PyTypeObject *type, const char *name)
{
    PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, name);
    if (descriptor == NULL)
        return -1;
    Py_ssize_t place = -1;
    if (Py_IS_TYPE(descriptor, &PyMemberDescr_Type))
        place = ((PyMemberDescrObject *)descriptor)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%s.%s is not in __slots__", type->tp_name, name);
    Py_DECREF(descriptor);
    return place;
}

static PyMethodDef functions[] = {
    {"fork_orphan", native_fork_orphan, METH_O, NULL},
    {"ordinary_request", (PyCFunction)(void (*)(void))native_ordinary_request, METH_FASTCALL, NULL},
    {"note_fork", native_note_fork, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "ostler._native",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (native_add_requests(module) < 0 || native_add_receiving(module) < 0 ||
                           native_add_responses(module) < 0 || native_add_exchanges(module) < 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
