/* The functions of the extension module `ostler._native`, each in a file of its own. */

#ifndef OSTLER_NATIVE_H
#define OSTLER_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *native_fork_orphan(PyObject *module, PyObject *own_group);

#endif
