/* The extension module `ostler._native`. What its functions do is said for Python in `_native.pyi`. */

#include "native.h"

static PyMethodDef functions[] = {
    {"fork_orphan", native_fork_orphan, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "ostler._native",
    .m_size = 0,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModule_Create(&definition);
}
