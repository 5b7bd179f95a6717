/* The functions and types of the extension module `ostler._native`, by the file in which they are. */

#ifndef OSTLER_NATIVE_H
#define OSTLER_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* orphan_fork.c */
PyObject *native_fork_orphan(PyObject *module, PyObject *own_group);

/* request.c */
extern PyTypeObject native_rules_type;
PyObject *native_ordinary_request(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
int native_add_requests(PyObject *module);

#endif
