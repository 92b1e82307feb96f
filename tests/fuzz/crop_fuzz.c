/* Feeds hostile JPEGs to the crop decoder, and checks that all ways to the same pixels agree.
 *
 * An input is PARAMETERS bytes (box, size, filter, flip), then a file. Beside what the sanitizers
 * find, an input is a failure where vectors change a byte, where a cut out of restart segments
 * differs from the same crop of the whole file, or where a crop differs from a full decode.
 */
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "crop.h"
#include "resize.h"

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
static bool decode_all(const uint8_t *data, size_t size, const Header *header, uint8_t *pixels) {
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

static void check_with_full_decode(const Crop *crop, const Header *header) {
    int width = crop->box.right - crop->box.left, height = crop->box.bottom - crop->box.top;
    Crop plain = *crop;
    plain.out_width = width, plain.out_height = height, plain.flip = false;
    plain.out = malloc((size_t)3 * width * height);
    uint8_t *pixels = malloc((size_t)4 * header->width * header->height);
    if (crop_resize(&plain, header) == CROP_DONE &&
        decode_all(crop->data, crop->size, header, pixels)) {
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                check(memcmp(plain.out + 3 * ((size_t)y * width + x),
                             pixels + 4 * ((size_t)(y + crop->box.top) * header->width + x +
                                           crop->box.left),
                             3) == 0,
                      "a crop is no part of the whole image");
    }
    free(plain.out);
    free(pixels);
}

static void check_all_ways(Crop *crop, const Header *header) {
    size_t num_bytes = (size_t)3 * crop->out_width * crop->out_height;
    uint8_t *first = malloc(num_bytes), *second = malloc(num_bytes);
    crop->out = first;
    int status = crop_resize(crop, header);
    crop->out = second;
    crop->vectors = false;
    check(crop_resize(crop, header) == status, "vectors change the outcome");
    if (status == CROP_DONE) check(memcmp(first, second, num_bytes) == 0, "vectors change pixels");
    Header whole = *header;
    whole.restart_interval = 0; /* so that nothing is cut */
    if (status == CROP_DONE && crop_resize(crop, &whole) == CROP_DONE)
        check(memcmp(first, second, num_bytes) == 0, "a cut changes pixels");
    free(first);
    free(second);
    if (status == CROP_DONE) check_with_full_decode(crop, header);
}

/* A place in [0, limit) from two bytes. */
static int place(const uint8_t *bytes, int limit) {
    return (int)(((unsigned int)bytes[0] << 8 | bytes[1]) % (unsigned int)limit);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    Header header;
    if (size < PARAMETERS) return 0;
    Crop crop = {.data = input + PARAMETERS, .size = size - PARAMETERS, .vectors = true};
    if (!header_read(crop.data, crop.size, &header)) return 0;
    check(header.scan_at <= crop.size, "the header is longer than the file");
    if ((int64_t)header.width * header.height > MAX_PIXELS) return 0;
    crop.box.left = place(input, header.width);
    crop.box.top = place(input + 2, header.height);
    crop.box.right = crop.box.left + 1 + place(input + 4, header.width - crop.box.left);
    crop.box.bottom = crop.box.top + 1 + place(input + 6, header.height - crop.box.top);
    crop.out_width = 1 + input[8] % MAX_OUT;
    crop.out_height = 1 + input[9] % MAX_OUT;
    crop.filter = input[10] % 3;
    crop.flip = input[11] % 2;
    check_all_ways(&crop, &header);
    return 0;
}
