/* Operations of augmentation on pixels of (height, width, 3) bytes, in place. Every random choice
 * is already made. Pixels equal Pillow's: the same integers, and floats in the same order, so each
 * processor gives the same bytes (compile without contraction of a * b + c).
 */
#ifndef OPS_H
#define OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vectors.h"

/* Places in pipeline.data.ops.OPS. */
enum {
    OP_AUTO_CONTRAST,
    OP_EQUALIZE,
    OP_INVERT,
    OP_ROTATE,
    OP_POSTERIZE,
    OP_SOLARIZE,
    OP_COLOR,
    OP_CONTRAST,
    OP_BRIGHTNESS,
    OP_SHARPNESS,
    OP_SHEAR_X,
    OP_SHEAR_Y,
    OP_TRANSLATE_X,
    OP_TRANSLATE_Y,
    OP_CUTOUT,
    OP_SOLARIZE_ADD,
    OP_ROTATE_BLACK,
    OP_SHEAR_X_BLACK,
    OP_SHEAR_Y_BLACK,
    OP_TRANSLATE_X_BLACK,
    OP_TRANSLATE_Y_BLACK,
    OP_ROTATE_BILINEAR,
    OP_SHEAR_X_BILINEAR,
    OP_SHEAR_Y_BILINEAR,
    OP_GREY_BOX,
    OP_NOISE_BOX,
    OPS_COUNT
};

#define OPS_MAX_VALUE 9007199254740992.0 /* 2^53: whole numbers below it are exact */
#define OPS_MAX_SIDE 16384

typedef struct {
    int code;
    double value; /* finite and below OPS_MAX_VALUE either way */
    int x, y;
} Op;

/* An image and room for another: what needs its source whole writes the other and swaps them. */
typedef struct {
    uint8_t *now, *other;
    int width, height;
    bool vectors; /* AVX2 where the processor has it; the bytes are the same */
} Picture;

static inline size_t picture_bytes(const Picture *picture) {
    return 3 * (size_t)picture->width * (size_t)picture->height;
}

static inline void picture_swap(Picture *picture) {
    uint8_t *now = picture->now;
    picture->now = picture->other;
    picture->other = now;
}

/* Apply `ops` to (height, width, 3) pixels, sides up to OPS_MAX_SIDE; 0, or -1 where there is no
 * memory: then the pixels are as they were. */
int ops_apply(uint8_t *pixels, int width, int height, const Op *ops, size_t count, bool vectors);

/* values.c: each value of a channel becomes another one. */
void values_auto_contrast(Picture *picture);
void values_equalize(Picture *picture);
void values_posterize(Picture *picture, double bits);
void values_solarize(Picture *picture, double threshold);
void values_solarize_add(Picture *picture, double addition);

/* blend.c: away from black, from the mean grey, from grey and from smooth. */
void blend_brightness(Picture *picture, double factor);
void blend_contrast(Picture *picture, double factor);
void blend_color(Picture *picture, double factor);
void blend_sharpness(Picture *picture, double factor);

/* warp.c: pixels from other places; `fill` where there is none. */
typedef enum { WARP_NEAREST, WARP_BILINEAR } WarpFilter;

void warp_rotate(Picture *picture, double degrees, WarpFilter filter, uint8_t fill);
void warp_shear(Picture *picture, double x, double y, WarpFilter filter, uint8_t fill);
void warp_translate(Picture *picture, double x, double y, uint8_t fill);

/* A kernel is NAME_body, compiled plainly and once more for AVX2, and chosen at run time. */
#define OPS_BODY static ALWAYS_INLINE
#define OPS_TWICE(name, parameters, arguments)                     \
    static void name##_plain parameters { name##_body arguments; } \
    AVX2 static void name##_avx2 parameters { name##_body arguments; }
#define OPS_CHOOSE(name, vectors) (*((vectors) ? name##_avx2 : name##_plain))

#endif
