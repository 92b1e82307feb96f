/* What the files of the module share. */
#ifndef MODULE_H
#define MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

extern bool use_vectors;          /* whether AVX2 is allowed */
extern PyMethodDef ops_methods[]; /* of ops_module.c */

#endif
