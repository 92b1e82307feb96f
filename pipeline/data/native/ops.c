#include "ops.h"

#include <stdlib.h>
#include <string.h>

enum { GREY = 128, BLACK = 0 };

typedef struct {
    int left, top, right, bottom;
} Bounds;

static int clip(int64_t at, int size) { return at < 0 ? 0 : at > size ? size : (int)at; }

static Bounds bounds(const Picture *picture, int64_t left, int64_t top, int64_t right,
                     int64_t bottom) {
    return (Bounds){clip(left, picture->width), clip(top, picture->height),
                    clip(right, picture->width), clip(bottom, picture->height)};
}

static Bounds square(const Picture *picture, const Op *op) {
    int64_t half = (int64_t)op->value;
    return bounds(picture, op->x - half, op->y - half, op->x + half, op->y + half);
}

/* x and y hold a start in their low 16 bits and an end above. */
static Bounds box(const Picture *picture, const Op *op) {
    return bounds(picture, op->x & 0xffff, op->y & 0xffff, op->x >> 16, op->y >> 16);
}

static void fill_grey(Picture *picture, Bounds at) {
    if (at.right <= at.left) return;
    for (int y = at.top; y < at.bottom; y++)
        memset(picture->now + 3 * ((size_t)y * picture->width + at.left), GREY,
               3 * (size_t)(at.right - at.left));
}

/* A counter through a 32-bit mixer: C. Wellons, "Prospecting for hash functions", lowbias32. */
static uint32_t mix(uint32_t bits) {
    bits = (bits ^ bits >> 16) * 0x7feb352du;
    bits = (bits ^ bits >> 15) * 0x846ca68bu;
    return bits ^ bits >> 16;
}

static void fill_noise(Picture *picture, Bounds at, uint32_t seed) {
    for (int y = at.top; y < at.bottom; y++)
        for (int x = at.left; x < at.right; x++) {
            size_t place = (size_t)y * picture->width + x;
            uint32_t bits = mix((uint32_t)place * 0x9e3779b9u + seed);
            uint8_t *pixel = picture->now + 3 * place;
            for (int c = 0; c < 3; c++) pixel[c] = (uint8_t)(bits >> 8 * c);
        }
}

static void apply(Picture *picture, const Op *op) {
    double value = op->value;
    switch (op->code) {
    case OP_AUTO_CONTRAST: values_auto_contrast(picture); break;
    case OP_EQUALIZE: values_equalize(picture); break;
    case OP_INVERT: values_solarize(picture, 0); break;
    case OP_POSTERIZE: values_posterize(picture, value); break;
    case OP_SOLARIZE: values_solarize(picture, value); break;
    case OP_SOLARIZE_ADD: values_solarize_add(picture, value); break;
    case OP_BRIGHTNESS: blend_brightness(picture, value); break;
    case OP_CONTRAST: blend_contrast(picture, value); break;
    case OP_COLOR: blend_color(picture, value); break;
    case OP_SHARPNESS: blend_sharpness(picture, value); break;
    case OP_ROTATE: warp_rotate(picture, value, WARP_NEAREST, GREY); break;
    case OP_ROTATE_BLACK: warp_rotate(picture, value, WARP_NEAREST, BLACK); break;
    case OP_ROTATE_BILINEAR: warp_rotate(picture, value, WARP_BILINEAR, BLACK); break;
    case OP_SHEAR_X: warp_shear(picture, value, 0, WARP_NEAREST, GREY); break;
    case OP_SHEAR_Y: warp_shear(picture, 0, value, WARP_NEAREST, GREY); break;
    case OP_SHEAR_X_BLACK: warp_shear(picture, value, 0, WARP_NEAREST, BLACK); break;
    case OP_SHEAR_Y_BLACK: warp_shear(picture, 0, value, WARP_NEAREST, BLACK); break;
    case OP_SHEAR_X_BILINEAR: warp_shear(picture, value, 0, WARP_BILINEAR, BLACK); break;
    case OP_SHEAR_Y_BILINEAR: warp_shear(picture, 0, value, WARP_BILINEAR, BLACK); break;
    case OP_TRANSLATE_X: warp_translate(picture, value, 0, GREY); break;
    case OP_TRANSLATE_Y: warp_translate(picture, 0, value, GREY); break;
    case OP_TRANSLATE_X_BLACK: warp_translate(picture, value, 0, BLACK); break;
    case OP_TRANSLATE_Y_BLACK: warp_translate(picture, 0, value, BLACK); break;
    case OP_CUTOUT: fill_grey(picture, square(picture, op)); break;
    case OP_GREY_BOX: fill_grey(picture, box(picture, op)); break;
    case OP_NOISE_BOX: fill_noise(picture, box(picture, op), (uint32_t)(int64_t)value); break;
    }
}

static bool needs_other(const Op *op) {
    switch (op->code) {
    case OP_SHARPNESS:
    case OP_ROTATE:
    case OP_ROTATE_BLACK:
    case OP_ROTATE_BILINEAR:
    case OP_SHEAR_X:
    case OP_SHEAR_Y:
    case OP_SHEAR_X_BLACK:
    case OP_SHEAR_Y_BLACK:
    case OP_SHEAR_X_BILINEAR:
    case OP_SHEAR_Y_BILINEAR: return true;
    default: return false;
    }
}

int ops_apply(uint8_t *pixels, int width, int height, const Op *ops, size_t count, bool vectors) {
    Picture picture = {pixels, NULL, width, height, vectors && has_vectors()};
    uint8_t *spare = NULL;
    for (size_t i = 0; i < count && spare == NULL; i++)
        if (needs_other(&ops[i]) && (spare = malloc(picture_bytes(&picture))) == NULL) return -1;
    picture.other = spare;
    for (size_t i = 0; i < count; i++) apply(&picture, &ops[i]);
    if (picture.now != pixels) memcpy(pixels, picture.now, picture_bytes(&picture));
    free(spare);
    return 0;
}
