/* What stands before the coefficients of a JPEG file (ITU-T T.81), as far as this decoder needs. */
#ifndef JPEG_HEADER_H
#define JPEG_HEADER_H

#include <stddef.h>
#include <stdint.h>

#define MAX_PIXELS 89478485u /* Pillow's limit */
#define MAX_BLOCKS_IN_MCU 10 /* T.81 B.2.3 */

/* Codes of one table as the file gives them: how many of each length, and their symbols. */
typedef struct {
    uint8_t counts[16], symbols[256];
    int num_symbols; /* 0: not in the file */
} HuffmanCode;

typedef struct {
    uint8_t id, h, v; /* sampling factors: 1, 2 or 4 */
    uint8_t quant, dc, ac;
} Component;

typedef struct {
    int width, height, num_components, restart_interval;
    int max_h, max_v;
    Component components[3];
    uint16_t quant[4][64]; /* in zigzag order */
    HuffmanCode dc[4], ac[4];
    size_t scan_at; /* where the coefficients begin */
} JpegHeader;

/* Read up to the first scan. 0, or -1 where the file is broken or not baseline YCbCr or grey in
 * one scan of 8 bits: nothing is then said about which. */
int jpeg_header(const uint8_t *data, size_t size, JpegHeader *header);

#endif
