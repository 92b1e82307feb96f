/* Decodes of a JPEG what a crop needs, and resizes it row by row as it comes. */
#ifndef CROP_H
#define CROP_H

#include "jpeg/region.h"

typedef struct {
    Region region;
    uint8_t *out;              /* (out_height, out_width, 3) */
    int out_width, out_height; /* 1 to 65,500 */
    int filter;                /* TAPS_BILINEAR, TAPS_BICUBIC or CROP_POINTS */
    bool flip;                 /* left to right, after the resize */
} Crop;

#define CROP_POINTS 2 /* bilinear between four pixels alone, without antialiasing */

/* Fill `out` with the crop, resized. After anything but REGION_OK `out` holds nothing of use. */
RegionStatus crop_resize(RegionDecoder *decoder, const Crop *crop);

#endif
