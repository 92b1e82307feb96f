/* The inverse DCT of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) with constants of 13 bits:
 * the bits of libjpeg's JDCT_ISLOW. */
#ifndef IDCT_H
#define IDCT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where coefficient i of the zigzag lies in a block; entries from 64 on are 64. Rows that the
 * transform adds in pairs (0 4, 2 6, 1 3, 5 7) lie side by side, and so do columns. */
extern const uint8_t idct_order[256];

/* 8 x 8 samples at `out`, `stride` bytes between rows. block and quant: 64 in idct_order, at
 * addresses that are multiples of 32. num: how many of the zigzag may be other than zero.
 *
 * 0, or -1 for coefficients that no picture has: libjpeg-turbo's sums of 16 bits might overflow on
 * them, and what it makes of that depends on the processor. */
int idct_block(const int16_t *block, const int16_t *quant, int num, uint8_t *out, size_t stride,
               bool vectors);

#endif
