/* An antialiased resize that takes its input row by row and keeps only the rows it still needs, so
 * that everything stays in the processor's nearest cache. Pixels equal Pillow's: one direction,
 * rounded to 8 bits, then the other; integers alone, so every processor gives the same bytes.
 */
#ifndef RESIZE_H
#define RESIZE_H

#include <stddef.h>
#include <stdint.h>

#include "taps.h"

typedef struct {
    Taps across, down;
    bool down_first; /* as Pillow from 13.0 on, where the height shrinks much more than the width */
    bool vectors;
    int in_width, kept, next_in, next_out;
    size_t slack, stride; /* so many bytes behind a row are read, and have no weight */
    uint8_t *ring; /* the last `kept` rows: as they came, or already as wide as the output */
    uint8_t *middle, *line; /* a row between the directions and one behind both */
    const uint8_t **rows;
    uint8_t *out; /* (down.out, across.out, 3) */
} Resize;

/* Begin a resize of (in_height, in_width) RGBX pixels into `out`, (out_height, out_width, 3);
 * `vectors` allows AVX2. 0, or -1 where there is no memory. End it in both cases. */
int resize_begin(Resize *resize, int in_width, int in_height, int out_width, int out_height,
                 int filter, bool flip, bool vectors, uint8_t *out);

/* Take the next row, 4 bytes a pixel and resize->slack behind it; writes what it completes. */
void resize_row(Resize *resize, const uint8_t *rgbx);

void resize_end(Resize *resize);

#endif
