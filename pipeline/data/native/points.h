/* A resize without antialiasing: four pixels around a single point are blended, those between the
 * points are lost, as in TensorFlow's default. Equal to Pillow's transform with an extent, also in
 * what it rounds: doubles, across first, then down, the fraction dropped at the end.
 */
#ifndef POINTS_H
#define POINTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int in_width, in_height, out_width, out_height, next_in, next_out;
    bool flip;
    double *parts;         /* for each output column how much of the right pixel it takes */
    int *places;           /* for each the bytes of its left and its right pixel in a row */
    double *upper, *lower; /* the last two rows that were needed, already as wide as the output */
    uint8_t *out;          /* (out_height, out_width, 3) */
} Points;

/* As resize.h's functions of the same names; rows need nothing behind their last pixel. */
int points_begin(Points *points, int in_width, int in_height, int out_width, int out_height,
                 bool flip, uint8_t *out);
void points_row(Points *points, const uint8_t *rgbx);
void points_end(Points *points);

#endif
