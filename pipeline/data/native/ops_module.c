/* apply(image, ops) for Python; module.c adds this table to the module. */
#include "module.h"

#include <math.h>

#include "ops.h"

/* Take the memory of (height, width, 3) bytes in a row; -1 and an exception for anything else. */
static int take_image(PyObject *object, Py_buffer *image) {
    if (PyObject_GetBuffer(object, image, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        PyErr_SetString(PyExc_ValueError, "image: expected a writable array without gaps");
        return -1;
    }
    if (image->ndim == 3 && image->shape[2] == 3 && image->itemsize == 1 &&
        image->format[0] == 'B' && image->shape[0] >= 1 && image->shape[0] <= OPS_MAX_SIDE &&
        image->shape[1] >= 1 && image->shape[1] <= OPS_MAX_SIDE)
        return 0;
    PyBuffer_Release(image);
    PyErr_Format(PyExc_ValueError, "image: expected (height, width, 3) of uint8, sides 1-%d",
                 OPS_MAX_SIDE);
    return -1;
}

/* Read (code, value, x, y); -1 and an exception where it is no operation. */
static int read_op(PyObject *item, Op *op) {
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_ValueError, "ops: expected tuples of (code, value, x, y)");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "idii:op", &op->code, &op->value, &op->x, &op->y)) return -1;
    if (op->code < 0 || op->code >= OPS_COUNT) {
        PyErr_Format(PyExc_ValueError, "ops: code %d is no operation, they are 0-%d", op->code,
                     OPS_COUNT - 1);
        return -1;
    }
    if (!isfinite(op->value) || fabs(op->value) >= OPS_MAX_VALUE) {
        PyErr_Format(PyExc_ValueError, "ops: the value of code %d is not finite, or 2^53 or more",
                     op->code);
        return -1;
    }
    return 0;
}

/* Return the operations of a sequence, to be freed; NULL and an exception where one is wrong. */
static Op *read_ops(PyObject *items, Py_ssize_t *count) {
    PyObject *all = PySequence_Fast(items, "ops: expected a sequence");
    if (all == NULL) return NULL;
    *count = PySequence_Fast_GET_SIZE(all);
    Op *ops = PyMem_Calloc((size_t)*count + 1, sizeof *ops);
    if (ops == NULL) PyErr_NoMemory();
    for (Py_ssize_t i = 0; ops != NULL && i < *count; i++)
        if (read_op(PySequence_Fast_GET_ITEM(all, i), &ops[i]) < 0) {
            PyMem_Free(ops);
            ops = NULL;
        }
    Py_DECREF(all);
    return ops;
}

static PyObject *apply_to(const Py_buffer *image, const Op *ops, Py_ssize_t count) {
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = ops_apply(image->buf, (int)image->shape[1], (int)image->shape[0], ops, (size_t)count,
                       use_vectors);
    Py_END_ALLOW_THREADS
    if (status < 0) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_apply(PyObject *self, PyObject *args) {
    PyObject *object, *items, *done = NULL;
    Py_buffer image;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "OO:apply", &object, &items)) return NULL;
    Op *ops = read_ops(items, &count);
    if (ops == NULL) return NULL;
    if (take_image(object, &image) == 0) {
        done = apply_to(&image, ops, count);
        PyBuffer_Release(&image);
    }
    PyMem_Free(ops);
    return done;
}

PyMethodDef ops_methods[] = {
    {"apply", py_apply, METH_VARARGS,
     "apply(image, ops): operations (code, value, x, y) on (height, width, 3) uint8, in place."},
    {NULL, NULL, 0, NULL},
};
