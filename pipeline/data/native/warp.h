/* Warps in doubles, for what fixed point is not enough for. */
#ifndef WARP_H
#define WARP_H

#include "ops.h"

/* The source of the output's (x, y) is (a x + b y + c, d x + e y + f). */
typedef struct {
    double a, b, c, d, e, f;
} Matrix;

/* Take the nearest pixel, or mix four; `fill` where there is none. */
void warp_exact(Picture *picture, const Matrix *m, bool bilinear, uint8_t fill);

#endif
