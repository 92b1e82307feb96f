/* Weights of an antialiased resize along one axis, equal to Pillow's bit by bit: the filter is as
 * wide as the scale, weights are normalised and rounded to 22 bits.
 * Source: precompute_coeffs and normalize_coeffs_8bpc of Pillow's Resample.c.
 */
#ifndef TAPS_H
#define TAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TAPS_BILINEAR, TAPS_BICUBIC };

#define TAPS_BITS 22     /* a weight of 1 is 1 << TAPS_BITS */
#define TAPS_LOW_BITS 11 /* a weight is high << TAPS_LOW_BITS | low, so that 16 bits hold each */
#define TAPS_GROUP 4     /* taps are stored and read four at a time; those too many weigh nothing */

/* Output x is the sum over i < count[x] of the input's pixels first[x] + i by their weights. Two
 * outputs are stored side by side: for each group the high and the low halves of the even output,
 * then those of the odd one. An odd number of outputs is rounded up by one without any weight. */
typedef struct {
    int out, groups;
    int *first, *count;
    int16_t *weights;
} Taps;

#define TAPS_PAIR (4 * TAPS_GROUP) /* halves of weights in a group of two outputs */

/* Compute the weights for `in` to `out` px, in reverse order of outputs if `flip`; 0, or -1 where
 * there is no memory. Free them in both cases. */
int taps_make(Taps *taps, int in, int out, int filter, bool flip);
void taps_free(Taps *taps);

/* The most inputs that lie between the first one of an output and the last one of it or of any
 * output before: how many must be kept when they come one after the other. */
int taps_span(const Taps *taps);

/* The high halves of the group with tap `i` of output `x`; the low ones are TAPS_GROUP further. */
static inline int16_t *taps_group(const Taps *taps, int x, int i) {
    size_t group = (size_t)(x / 2) * taps->groups + i / TAPS_GROUP;
    return taps->weights + group * TAPS_PAIR + x % 2 * 2 * TAPS_GROUP;
}

static inline int32_t taps_weight(const Taps *taps, int x, int i) {
    const int16_t *high = taps_group(taps, x, i) + i % TAPS_GROUP;
    return high[0] * (1 << TAPS_LOW_BITS) + high[TAPS_GROUP];
}

#endif
