/* data_prep._native: JPEGs written anew, by libjpeg-turbo's public API alone.
 *
 *   lossless(data, restarts) -> bytes           the same coefficients, optimised Huffman tables
 *   resize(data, short_px, quality) -> (bytes, width, height)
 *
 * Both release the GIL. Bytes are untrusted: an error inside libjpeg jumps back here and becomes a
 * ValueError, and sizes are limited before anything is allocated by them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "resample.h"

#define TEXT(x) #x
#define TEXT_OF(x) TEXT(x)

#define MAX_PIXELS 178956970u /* twice Pillow's limit; the Python side refuses earlier */
#define ICC_MARKER (JPEG_APP0 + 2)
#define ICC_NAME "ICC_PROFILE" /* with its zero */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf back;
    char text[JMSG_LENGTH_MAX];
} Errors;

/* One picture on its way; everything that an error must give back. */
typedef struct {
    struct jpeg_decompress_struct in;
    struct jpeg_compress_struct out;
    Errors errors;
    unsigned char *room, *bytes; /* for the new file, and where it lies: libjpeg takes larger room
                                    where this is too small, and never frees ours */
    unsigned long size;
    uint8_t *pixels, *small;
    int width, height;
} Work;

static void on_error(j_common_ptr info) {
    Errors *errors = (Errors *)info->err;
    errors->base.format_message(info, errors->text);
    longjmp(errors->back, 1);
}

static void on_message(j_common_ptr info, int level) {
    if (level >= 0) return;
    Errors *errors = (Errors *)info->err;
    if (errors->base.num_warnings++ == 0) errors->base.format_message(info, errors->text);
}

static void fail(Work *work, const char *text) {
    snprintf(work->errors.text, sizeof work->errors.text, "%s", text);
    longjmp(work->errors.back, 1);
}

static void begin(Work *work) {
    memset(work, 0, sizeof *work);
    work->in.err = work->out.err = jpeg_std_error(&work->errors.base);
    work->errors.base.error_exit = on_error;
    work->errors.base.emit_message = on_message;
}

static void end(Work *work) {
    jpeg_destroy_compress(&work->out); /* harmless on what was never created: memory is zero */
    jpeg_destroy_decompress(&work->in);
    free(work->pixels);
    free(work->small);
}

static void open_source(Work *work, const Py_buffer *data) {
    jpeg_create_decompress(&work->in);
    jpeg_create_compress(&work->out);
    jpeg_save_markers(&work->in, ICC_MARKER, 0xFFFF);
    jpeg_mem_src(&work->in, data->buf, (unsigned long)data->len);
    jpeg_read_header(&work->in, TRUE);
    if ((uint64_t)work->in.image_width * work->in.image_height > MAX_PIXELS)
        fail(work, "too many pixels");
    if (work->in.num_components != 1 && work->in.num_components != 3)
        fail(work, "neither grey nor three components");
}

static void open_target(Work *work, size_t expected_bytes) {
    work->size = expected_bytes + 65536;
    work->room = work->bytes = malloc(work->size);
    if (work->room == NULL) fail(work, "out of memory");
    jpeg_mem_dest(&work->out, &work->bytes, &work->size);
}

static void copy_icc(Work *work) {
    for (jpeg_saved_marker_ptr m = work->in.marker_list; m != NULL; m = m->next)
        if (m->data_length >= sizeof ICC_NAME && memcmp(m->data, ICC_NAME, sizeof ICC_NAME) == 0)
            jpeg_write_marker(&work->out, m->marker, m->data, m->data_length);
}

/* MCUs between two restart markers: a part of a row of 4 to 8, or the whole row where its number
 * of MCUs has no such divisor. A crop can then skip to the left and to the right of it. */
static unsigned int segment(const struct jpeg_decompress_struct *in) {
    unsigned int mcu_px = in->num_components == 1 ? 8 : 8 * in->max_h_samp_factor;
    unsigned int row = (in->image_width + mcu_px - 1) / mcu_px;
    for (unsigned int length = 8; length >= 4; length--)
        if (row % length == 0) return length;
    return row;
}

static int write_lossless(Work *work, const Py_buffer *data, int restarts) {
    if (setjmp(work->errors.back)) return -1;
    open_source(work, data);
    jvirt_barray_ptr *coefficients = jpeg_read_coefficients(&work->in);
    if (work->errors.base.num_warnings) return -1;
    jpeg_copy_critical_parameters(&work->in, &work->out);
    work->out.optimize_coding = TRUE;
    work->out.restart_interval = restarts ? segment(&work->in) : 0;
    open_target(work, (size_t)data->len + data->len / 2);
    jpeg_write_coefficients(&work->out, coefficients);
    copy_icc(work);
    jpeg_finish_compress(&work->out);
    jpeg_finish_decompress(&work->in);
    return work->errors.base.num_warnings ? -1 : 0;
}

/* The target: the short side becomes at most `px`, the long one follows, rounded to the nearest. */
static void choose_size(Work *work, unsigned int px) {
    uint64_t w = work->in.image_width, h = work->in.image_height, low = w < h ? w : h;
    if (px > low) px = low;
    work->width = (int)((2 * w * px + low) / (2 * low));
    work->height = (int)((2 * h * px + low) / (2 * low));
}

/* Let the decoder halve as long as the picture stays at least as large as the target. */
static void choose_scale(Work *work) {
    unsigned int scale = 8;
    while (scale > 1 && work->in.image_width * (scale / 2) >= 8u * work->width &&
           work->in.image_height * (scale / 2) >= 8u * work->height)
        scale /= 2;
    work->in.scale_num = scale;
    work->in.scale_denom = 8;
}

static void read_pixels(Work *work) {
    jpeg_start_decompress(&work->in);
    size_t stride = (size_t)work->in.output_width * work->in.output_components;
    work->pixels = malloc(stride * work->in.output_height + RESAMPLE_SLACK);
    if (work->pixels == NULL) fail(work, "out of memory");
    while (work->in.output_scanline < work->in.output_height) {
        JSAMPROW row = work->pixels + stride * work->in.output_scanline;
        jpeg_read_scanlines(&work->in, &row, 1);
    }
}

static void write_pixels(Work *work, int quality) {
    int channels = work->in.output_components;
    work->out.image_width = work->width;
    work->out.image_height = work->height;
    work->out.input_components = channels;
    work->out.in_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_YCbCr;
    jpeg_set_defaults(&work->out); /* 4:2:0 */
    jpeg_set_quality(&work->out, quality, TRUE);
    open_target(work, (size_t)work->width * work->height * channels);
    jpeg_start_compress(&work->out, TRUE);
    copy_icc(work);
    while (work->out.next_scanline < work->out.image_height) {
        JSAMPROW row = work->small + (size_t)work->width * channels * work->out.next_scanline;
        jpeg_write_scanlines(&work->out, &row, 1);
    }
    jpeg_finish_compress(&work->out);
}

static int write_resized(Work *work, const Py_buffer *data, int px, int quality) {
    if (setjmp(work->errors.back)) return -1;
    open_source(work, data);
    choose_size(work, px);
    choose_scale(work);
    /* No way over RGB and back: the encoder wants what the decoder has. */
    work->in.out_color_space = work->in.num_components == 1 ? JCS_GRAYSCALE : JCS_YCbCr;
    read_pixels(work);
    int channels = work->in.output_components;
    work->small = malloc((size_t)work->width * work->height * channels);
    if (work->small == NULL ||
        resample(work->pixels, work->in.output_width, work->in.output_height, work->small,
                 work->width, work->height, channels))
        fail(work, "out of memory");
    write_pixels(work, quality);
    jpeg_finish_decompress(&work->in); /* only now: the colour profile goes with it */
    return work->errors.base.num_warnings ? -1 : 0;
}

/* Turn the outcome into a Python object and give everything back. */
static PyObject *result(Work *work, int status) {
    PyObject *bytes = NULL;
    if (status == 0)
        bytes = PyBytes_FromStringAndSize((const char *)work->bytes, (Py_ssize_t)work->size);
    else
        PyErr_Format(PyExc_ValueError, "libjpeg: %s", work->errors.text);
    if (work->bytes != work->room && status == 0) free(work->bytes);
    free(work->room);
    return bytes;
}

static PyObject *py_lossless(PyObject *self, PyObject *args) {
    Py_buffer data;
    int restarts, status;
    Work work;
    if (!PyArg_ParseTuple(args, "y*p:lossless", &data, &restarts)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    begin(&work);
    status = write_lossless(&work, &data, restarts);
    end(&work);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return result(&work, status);
}

static PyObject *py_resize(PyObject *self, PyObject *args) {
    Py_buffer data;
    int px, quality, status;
    Work work;
    if (!PyArg_ParseTuple(args, "y*ii:resize", &data, &px, &quality)) return NULL;
    if (px < 1 || px > JPEG_MAX_DIMENSION || quality < 1 || quality > 100) {
        PyBuffer_Release(&data);
        return PyErr_Format(PyExc_ValueError, "short_px %d, quality %d: out of range", px, quality);
    }
    Py_BEGIN_ALLOW_THREADS
    begin(&work);
    status = write_resized(&work, &data, px, quality);
    end(&work);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    PyObject *bytes = result(&work, status);
    return bytes == NULL ? NULL : Py_BuildValue("(Nii)", bytes, work.width, work.height);
}

static PyMethodDef methods[] = {
    {"lossless", py_lossless, METH_VARARGS,
     "lossless(data, restarts) -> bytes: the same coefficients, coded anew as baseline."},
    {"resize", py_resize, METH_VARARGS,
     "resize(data, short_px, quality) -> (bytes, width, height): a smaller JPEG, 4:2:0."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "data_prep._native",
                                    "JPEGs written anew by libjpeg-turbo.", -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *self = PyModule_Create(&module);
    if (self != NULL &&
        PyModule_AddStringConstant(self, "LIBRARY",
                                   "libjpeg-turbo " TEXT_OF(LIBJPEG_TURBO_VERSION)) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return self;
}
