/* The part of each component that a crop needs, one row of MCUs at a time, and pixels from it. */
#ifndef PLANES_H
#define PLANES_H

#include <stddef.h>
#include <stdint.h>

#include "header.h"
#include "huffman.h"

typedef struct {
    int left, top, right, bottom; /* px of the image; right and bottom are the first outside */
} Box;

/* One component. Blocks outside [x0, x1) x [y0, y1) are not kept. */
typedef struct {
    int16_t quant[64] __attribute__((aligned(32))); /* in idct_order */
    int h, v;          /* blocks in an MCU */
    int across, down;  /* pixels for a sample */
    int is_smooth_across, is_smooth_down;
    int width, height;  /* samples in the image */
    int x0, x1, y0, y1; /* blocks */
    uint8_t *samples;   /* row 0 of the row of MCUs, at block x0; row -1 is the last one before */
    uint8_t *upsampled; /* a row of the crop */
    size_t stride;
    DcTable *dc;
    AcTable *ac;
    int32_t last_dc;
} Plane;

typedef struct {
    Plane planes[3];
    int num;
    Box box;
    bool vectors; /* AVX2; the bytes are the same */
    int mcu_width, mcu_height; /* px */
    int num_across, num_down;  /* MCUs of the image */
    int x0, x1, y0, y1;        /* MCUs that hold a kept block */
} Planes;

void planes_open(Planes *planes, const JpegHeader *header, Box box, bool vectors);

/* Bytes that planes_place() wants, 32-aligned. */
size_t planes_bytes(const Planes *planes);
void planes_place(Planes *planes, uint8_t *room);

/* Rows of the crop up to which pixels can be made once MCU row `row` is decoded. */
int planes_ready(const Planes *planes, int row);

/* Before pixels are made from MCU row `row`: neighbours beyond the image's edges. */
void planes_close_edges(Planes *planes);

/* Row y of the image, from box.left to box.right; MCU row `row` is the one decoded last. */
void planes_pixels(const Planes *planes, int row, int y, uint8_t *rgbx);

/* Keep what the next row of MCUs needs of this one. */
void planes_advance(Planes *planes);

#endif
