/* Decodes of a JPEG what a crop needs, and resizes it: rows above are only entropy-decoded, rows
 * below never read, blocks beside are not transformed. By libjpeg-turbo's public API alone.
 */
#ifndef CROP_H
#define CROP_H

#include "segments.h"

typedef struct {
    const uint8_t *data;
    size_t size;
    Box box;                   /* px of the image, not empty and inside it */
    uint8_t *out;              /* (out_height, out_width, 3) */
    int out_width, out_height; /* 1 to 65,500 */
    int filter;                /* TAPS_BILINEAR, TAPS_BICUBIC or CROP_POINTS */
    bool flip;                 /* left to right, after the resize */
    bool vectors;              /* AVX2 where the processor has it; the bytes are the same */
} Crop;

#define CROP_POINTS 2 /* bilinear between four pixels alone, without antialiasing */
#define CROP_MAX_PIXELS 89478485 /* of the image; from there on Pillow warns of a bomb */

enum { CROP_DONE, CROP_REFUSED, CROP_NO_MEMORY };

/* Whether this file is for the fast path: baseline, 8 bits, grey or three components in one scan,
 * not too large, and whole up to the end of image in its last two bytes. */
bool crop_takes(const uint8_t *data, size_t size, const Header *header);

/* Fill `out` with the crop, resized. CROP_REFUSED: something is unusual or any decoder's warning
 * came up, so `out` holds nothing of use and another decoder must judge. */
int crop_resize(const Crop *crop, const Header *header);

#endif
