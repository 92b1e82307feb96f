/* Antialiased bilinear resampling of 8-bit pixels, as Pillow's: a triangle as wide as the scale,
 * weights of 22 bits, rows first and then columns, rounded to 8 bits between the two. Integers
 * alone, so the result is the same on every processor.
 */
#ifndef RESAMPLE_H
#define RESAMPLE_H

#include <stdint.h>

/* So many bytes behind the last pixel are read, and have no weight. */
#define RESAMPLE_SLACK 64

/* Resample (in_h, in_w, channels) into (out_h, out_w, channels), 1 or 3 channels; 0, or -1 where
 * there is no memory. */
int resample(const uint8_t *in, int in_w, int in_h, uint8_t *out, int out_w, int out_h,
             int channels);

#endif
