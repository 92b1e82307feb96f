/* Feeds hostile JPEGs to the crop decoder, and checks that all ways to the same pixels agree.
 *
 * An input is PARAMETERS bytes (box, size, filter, flip), then a file. Beside what the sanitizers
 * find, an input is a failure where vectors change a byte, where a decoder that has seen other
 * files gives other bytes than a new one, or where a crop differs from libjpeg-turbo's full decode.
 */
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "crop.h"

#define PARAMETERS 12
#define MAX_PIXELS 250000 /* so that one input takes milliseconds */
#define MAX_OUT 96

typedef struct {
    struct jpeg_error_mgr errors;
    jmp_buf back;
} Errors;

static void on_error(j_common_ptr info) { longjmp(((Errors *)info->err)->back, 1); }

static void on_message(j_common_ptr info, int level) {
    if (level < 0) on_error(info);
}

static void check(bool agree, const char *what) {
    if (agree) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

/* Decode the whole file to RGBX, (height, width, 4); false on any warning. */
static bool decode_all(const uint8_t *data, size_t size, const JpegHeader *header, uint8_t *pixels) {
    struct jpeg_decompress_struct decoder;
    Errors errors;
    memset(&decoder, 0, sizeof decoder);
    decoder.err = jpeg_std_error(&errors.errors);
    errors.errors.error_exit = on_error;
    errors.errors.emit_message = on_message;
    if (setjmp(errors.back)) {
        jpeg_destroy_decompress(&decoder);
        return false;
    }
    jpeg_create_decompress(&decoder);
    jpeg_mem_src(&decoder, data, (unsigned long)size);
    jpeg_read_header(&decoder, TRUE);
    decoder.out_color_space = JCS_EXT_RGBX;
    jpeg_start_decompress(&decoder);
    while (decoder.output_scanline < decoder.output_height) {
        JSAMPROW row = pixels + (size_t)4 * header->width * decoder.output_scanline;
        jpeg_read_scanlines(&decoder, &row, 1);
    }
    jpeg_finish_decompress(&decoder);
    jpeg_destroy_decompress(&decoder);
    return true;
}

static void check_with_full_decode(RegionDecoder *decoder, const Crop *crop,
                                   const JpegHeader *header) {
    const Region *region = &crop->region;
    const Box *box = &region->box;
    size_t stride = 4 * (size_t)(box->right - box->left), whole = 4 * (size_t)header->width;
    int height = box->bottom - box->top;
    uint8_t *part = malloc(stride * height), *pixels = malloc(whole * header->height);
    RegionRows rows = {.at = part, .stride = stride};
    check(region_open(decoder, region) == REGION_OK, "a file is taken only once");
    check(region_rows(decoder, &rows) == REGION_OK, "a file is decoded only once");
    if (decode_all(region->data, region->size, header, pixels)) {
        const uint8_t *corner = pixels + whole * box->top + 4 * (size_t)box->left;
        for (int y = 0; y < height; y++)
            check(memcmp(part + stride * y, corner + whole * y, stride) == 0,
                  "a crop is no part of the whole image");
    }
    free(part);
    free(pixels);
}

static void check_all_ways(RegionDecoder *used, Crop *crop, const JpegHeader *header) {
    size_t num_bytes = (size_t)3 * crop->out_width * crop->out_height;
    uint8_t *first = malloc(num_bytes), *second = malloc(num_bytes);
    RegionDecoder *fresh = region_new();
    crop->out = first;
    RegionStatus status = crop_resize(used, crop);
    check(status != REGION_OUTSIDE, "a box inside is taken for one outside");
    crop->out = second;
    crop->region.vectors = false;
    check(crop_resize(fresh, crop) == status, "vectors or former files change the outcome");
    if (status == REGION_OK) {
        check(memcmp(first, second, num_bytes) == 0, "vectors or former files change pixels");
        check_with_full_decode(used, crop, header);
    }
    region_free(fresh);
    free(first);
    free(second);
}

/* A place in [0, limit) from two bytes. */
static int place(const uint8_t *bytes, int limit) {
    return (int)(((unsigned int)bytes[0] << 8 | bytes[1]) % (unsigned int)limit);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    static RegionDecoder *decoder;
    JpegHeader header;
    if (decoder == NULL) decoder = region_new();
    if (size < PARAMETERS) return 0;
    Crop crop = {.region = {.data = input + PARAMETERS, .size = size - PARAMETERS}};
    if (jpeg_header(crop.region.data, crop.region.size, &header) != 0) return 0;
    check(header.scan_at <= crop.region.size, "the header is longer than the file");
    if ((int64_t)header.width * header.height > MAX_PIXELS) return 0;
    Box *box = &crop.region.box;
    box->left = place(input, header.width);
    box->top = place(input + 2, header.height);
    box->right = box->left + 1 + place(input + 4, header.width - box->left);
    box->bottom = box->top + 1 + place(input + 6, header.height - box->top);
    crop.region.vectors = true;
    crop.out_width = 1 + input[8] % MAX_OUT;
    crop.out_height = 1 + input[9] % MAX_OUT;
    crop.filter = input[10] % 3;
    crop.flip = input[11] % 2;
    check_all_ways(decoder, &crop, &header);
    return 0;
}
