/* pipeline.data._native: the hot path of loading, outside the interpreter's lock.
 *
 *   size(data) -> (width, height)
 *   crop_resize(data, box, out, filter, flip) -> bool
 *   vectors(on) -> bool
 *
 * and the operations on pixels of ops_module.c.
 */
#include "module.h"

#include "crop.h"
#include "taps.h"
#include "vectors.h"

#define MAX_SIDE 65500
#define MAX_IDLE 16 /* decoders kept for the next images: as many threads hardly load at once */

bool use_vectors = true;

/* Decoders that nobody uses at the moment; the interpreter's lock guards them. */
static RegionDecoder *idle[MAX_IDLE];
static int num_idle = 0;

static PyObject *py_size(PyObject *self, PyObject *data) {
    Py_buffer bytes;
    JpegHeader header;
    if (PyObject_GetBuffer(data, &bytes, PyBUF_SIMPLE) < 0) return NULL;
    int status = jpeg_header(bytes.buf, (size_t)bytes.len, &header);
    PyBuffer_Release(&bytes);
    if (status != 0) return PyErr_Format(PyExc_ValueError, "no baseline JPEG of YCbCr or grey");
    return Py_BuildValue("(ii)", header.width, header.height);
}

/* Take `out`'s memory; -1 and an exception where it is no (height, width, 3) of bytes in a row. */
static int take_out(PyObject *object, Py_buffer *out) {
    if (PyObject_GetBuffer(object, out, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return -1;
    if (out->ndim == 3 && out->shape[2] == 3 && out->itemsize == 1 && out->format[0] == 'B' &&
        out->shape[0] >= 1 && out->shape[0] <= MAX_SIDE && out->shape[1] >= 1 &&
        out->shape[1] <= MAX_SIDE)
        return 0;
    PyBuffer_Release(out);
    PyErr_SetString(PyExc_ValueError, "out: expected (height, width, 3) of uint8, sides 1-65500");
    return -1;
}

static PyObject *fail_for_box(const Region *region) {
    const Box *box = &region->box;
    JpegHeader header;
    jpeg_header(region->data, region->size, &header);
    return PyErr_Format(PyExc_ValueError, "box (%d, %d, %d, %d) is no part of an image of %d x %d",
                        box->left, box->top, box->right, box->bottom, header.width,
                        header.height);
}

static PyObject *crop_into(Crop *crop, Py_buffer *out) {
    RegionStatus status;
    RegionDecoder *decoder = num_idle > 0 ? idle[--num_idle] : region_new();
    if (decoder == NULL) return PyErr_NoMemory();
    crop->out = out->buf;
    crop->out_height = (int)out->shape[0];
    crop->out_width = (int)out->shape[1];
    Py_BEGIN_ALLOW_THREADS
    status = crop_resize(decoder, crop);
    Py_END_ALLOW_THREADS
    if (num_idle < MAX_IDLE)
        idle[num_idle++] = decoder;
    else
        region_free(decoder);
    if (status == REGION_NO_MEMORY) return PyErr_NoMemory();
    if (status == REGION_OUTSIDE) return fail_for_box(&crop->region);
    return PyBool_FromLong(status == REGION_OK);
}

static PyObject *py_crop_resize(PyObject *self, PyObject *args) {
    Py_buffer data, out;
    PyObject *target, *done = NULL;
    Crop crop = {.region.vectors = use_vectors};
    Box *box = &crop.region.box;
    int flip;
    if (!PyArg_ParseTuple(args, "y*(iiii)Oip:crop_resize", &data, &box->left, &box->top,
                          &box->right, &box->bottom, &target, &crop.filter, &flip))
        return NULL;
    crop.region.data = data.buf;
    crop.region.size = (size_t)data.len;
    crop.flip = flip;
    if (crop.filter < TAPS_BILINEAR || crop.filter > CROP_POINTS)
        PyErr_Format(PyExc_ValueError,
                     "filter %d: expected 0 (bilinear), 1 (bicubic) or 2 (bilinear points)",
                     crop.filter);
    else if (take_out(target, &out) == 0) {
        done = crop_into(&crop, &out);
        PyBuffer_Release(&out);
    }
    PyBuffer_Release(&data);
    return done;
}

static PyObject *py_vectors(PyObject *self, PyObject *on) {
    int wanted = PyObject_IsTrue(on);
    if (wanted < 0) return NULL;
    use_vectors = wanted;
    return PyBool_FromLong(use_vectors && has_vectors());
}

static PyMethodDef methods[] = {
    {"size", py_size, METH_O,
     "size(data) -> (width, height), from the header of a JPEG that may be for crop_resize."},
    {"crop_resize", py_crop_resize, METH_VARARGS,
     "crop_resize(data, box, out, filter, flip) -> bool: False where another decoder must judge."},
    {"vectors", py_vectors, METH_O,
     "vectors(on) -> bool: allow AVX2; tells whether it is used. The bytes never depend on it."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "pipeline.data._native",
                                    "Crops of JPEGs and operations on pixels.", -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *self = PyModule_Create(&module);
    if (self == NULL) return NULL;
    if (PyModule_AddFunctions(self, ops_methods) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return self;
}
