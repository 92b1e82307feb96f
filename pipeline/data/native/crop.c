#include "crop.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "points.h"
#include "resize.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "libjpeg-turbo is needed: plain libjpeg can neither crop nor skip"
#endif

/* All that a jump out of libjpeg must give back. */
typedef struct {
    struct jpeg_error_mgr errors; /* first, so that libjpeg's pointer to it is one to this */
    jmp_buf back;
    struct jpeg_decompress_struct decoder;
    Resize resize; /* one of these two */
    Points points;
    uint8_t *room, *row;
    bool out_of_memory;
} Work;

static void on_error(j_common_ptr info) { longjmp(((Work *)info->err)->back, 1); }

/* Into aligned rows libjpeg-turbo's vectors write around the cache, and the resize that comes next
 * waits for memory: a quarter of the whole time. So the row is set off by a little. */
#define OFF_ALIGNMENT 8

/* A warning means that pixels would be made up; the message alone costs time. */
static void on_message(j_common_ptr info, int level) {
    if (level < 0) on_error(info);
}

static void fail_for_memory(Work *work) {
    work->out_of_memory = true;
    longjmp(work->back, 1);
}

bool crop_takes(const uint8_t *data, size_t size, const Header *header) {
    return header->sequential && header->precision == 8 &&
           (header->components == 1 || header->components == 3) &&
           (int64_t)header->width * header->height <= CROP_MAX_PIXELS &&
           size >= header->scan_at + 2 && data[size - 2] == 0xFF && data[size - 1] == MARKER_EOI;
}

static void open_decoder(Work *work, const uint8_t *data, size_t size, const Header *header) {
    struct jpeg_decompress_struct *decoder = &work->decoder;
    jpeg_create_decompress(decoder);
    jpeg_mem_src(decoder, data, (unsigned long)size);
    jpeg_read_header(decoder, TRUE);
    if (decoder->progressive_mode || decoder->arith_code || jpeg_has_multiple_scans(decoder) ||
        decoder->num_components != header->components)
        longjmp(work->back, 1);
    decoder->out_color_space = JCS_EXT_RGBX;
    jpeg_start_decompress(decoder);
}

static void begin_resize(Work *work, const Crop *crop, Box box) {
    int width = box.right - box.left, height = box.bottom - box.top;
    int status = crop->filter == CROP_POINTS
                     ? points_begin(&work->points, width, height, crop->out_width,
                                    crop->out_height, crop->flip, crop->out)
                     : resize_begin(&work->resize, width, height, crop->out_width,
                                    crop->out_height, crop->filter, crop->flip, crop->vectors,
                                    crop->out);
    if (status != 0) fail_for_memory(work);
}

static void take_row(Work *work, const uint8_t *rgbx) {
    if (work->points.out != NULL)
        points_row(&work->points, rgbx);
    else
        resize_row(&work->resize, rgbx);
}

static void make_row(Work *work, size_t num_bytes) {
    work->room = calloc(num_bytes + work->resize.slack + OFF_ALIGNMENT, 1);
    if (work->room == NULL) fail_for_memory(work);
    work->row = work->room + OFF_ALIGNMENT;
}

/* Read the rows of `box` into the resize; libjpeg widens the columns to whole blocks. */
static void read_rows(Work *work, Box box) {
    struct jpeg_decompress_struct *decoder = &work->decoder;
    int right = box.right + CROP_MARGIN, left = box.left - CROP_MARGIN;
    JDIMENSION x = left > 0 ? (JDIMENSION)left : 0;
    JDIMENSION end = (JDIMENSION)right < decoder->output_width ? (JDIMENSION)right
                                                               : decoder->output_width;
    JDIMENSION width = end - x;
    if (width < decoder->output_width) jpeg_crop_scanline(decoder, &x, &width);
    make_row(work, 4 * (size_t)decoder->output_width);
    if (box.top > 0 && jpeg_skip_scanlines(decoder, (JDIMENSION)box.top) != (JDIMENSION)box.top)
        longjmp(work->back, 1);
    for (int y = box.top; y < box.bottom; y++) {
        JSAMPROW row = work->row;
        if (jpeg_read_scanlines(decoder, &row, 1) != 1) longjmp(work->back, 1);
        take_row(work, work->row + 4 * (size_t)(box.left - (int)x));
    }
}

static int decode(Work *work, const Crop *crop, const Header *header, const uint8_t *data,
                  size_t size, Box box) {
    if (setjmp(work->back)) return work->out_of_memory ? CROP_NO_MEMORY : CROP_REFUSED;
    open_decoder(work, data, size, header);
    if (box.right > (int)work->decoder.output_width ||
        box.bottom > (int)work->decoder.output_height)
        longjmp(work->back, 1); /* the bytes changed since the header was read */
    begin_resize(work, crop, box);
    read_rows(work, box);
    return CROP_DONE;
}

static int decode_and_clean(const Crop *crop, const Header *header, const uint8_t *data,
                            size_t size, Box box) {
    Work work;
    memset(&work, 0, sizeof work);
    work.decoder.err = jpeg_std_error(&work.errors);
    work.errors.error_exit = on_error;
    work.errors.emit_message = on_message;
    int status = decode(&work, crop, header, data, size, box);
    jpeg_destroy_decompress(&work.decoder); /* harmless on what was never created: all is zero */
    resize_end(&work.resize);
    points_end(&work.points);
    free(work.room);
    return status;
}

int crop_resize(const Crop *crop, const Header *header) {
    Cut cut = {NULL, 0, 0, 0};
    Box box = crop->box;
    if (!crop_takes(crop->data, crop->size, header)) return CROP_REFUSED;
    switch (segments_cut(crop->data, crop->size, header, box, &cut)) {
        case CUT_IMPOSSIBLE: return CROP_REFUSED;
        case CUT_NO_MEMORY: return CROP_NO_MEMORY;
        case CUT_USELESS: return decode_and_clean(crop, header, crop->data, crop->size, box);
        default: break;
    }
    box.left -= cut.left, box.right -= cut.left;
    box.top -= cut.top, box.bottom -= cut.top;
    int status = decode_and_clean(crop, header, cut.bytes, cut.size, box);
    free(cut.bytes);
    return status;
}
