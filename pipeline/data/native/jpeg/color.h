/* From the rows of planes to rows of pixels, with the bits of libjpeg-turbo's fancy upsampling and
 * of its tables for YCbCr to RGB (JFIF 1.02). Pixels are R G B 255.
 *
 * Rows that are read have COLOR_SLACK readable bytes in front of and behind what is asked for, and
 * rows of samples that are written as many writable ones behind. */
#ifndef COLOR_H
#define COLOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COLOR_SLACK 64

/* `num` samples to 2 num, each 3/4 near and 1/4 far neighbour; in[-1] and in[num] count. */
void upsample_across(const uint8_t *in, uint8_t *out, int num, bool vectors);

/* The same in both directions; `far` is the row on the other side of the wanted one. */
void upsample_both(const uint8_t *near, const uint8_t *far, uint8_t *out, int num, bool vectors);

/* The same downwards: bias 1 for the upper of two rows, 2 for the lower. */
void upsample_down(const uint8_t *near, const uint8_t *far, uint8_t *out, int num, int bias,
                   bool vectors);

/* Each sample `factor` times. */
void upsample_plain(const uint8_t *in, uint8_t *out, int num, int factor);

/* Exactly `width` pixels are written. */
void color_ycc(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *rgbx, int width,
               bool vectors);
void color_grey(const uint8_t *y, uint8_t *rgbx, int width, bool vectors);

#endif
