/* A rectangle out of a JPEG file, bit for bit what libjpeg-turbo makes of it, at a fraction of the
 * work: see region.c. */
#ifndef REGION_H
#define REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "planes.h"

typedef enum {
    REGION_OK,
    REGION_NOT_MINE, /* broken, or a kind that this decoder does not do: ask another one */
    REGION_OUTSIDE,  /* the box does not lie in the image, or holds no pixel */
    REGION_NO_MEMORY,
} RegionStatus;

typedef struct {
    const uint8_t *data; /* a whole file */
    size_t size;
    Box box;
    bool vectors; /* AVX2 where the processor has it; the bytes are the same */
} Region;

/* Where pixels (R G B 255) go: row i of the box to at + i * stride, then done(context, i) where
 * there is such a function. What was written counts only after REGION_OK. */
typedef struct {
    uint8_t *at;
    size_t stride;
    void (*done)(void *context, int row);
    void *context;
} RegionRows;

/* Memory and tables that are kept from image to image, for one thread at a time. NULL: no memory. */
typedef struct RegionDecoder RegionDecoder;
RegionDecoder *region_new(void);
void region_free(RegionDecoder *decoder);

/* Look at the header; the data must stay where they are until the rows are decoded. */
RegionStatus region_open(RegionDecoder *decoder, const Region *region);

/* Decode what was opened last, once, after REGION_OK. */
RegionStatus region_rows(RegionDecoder *decoder, const RegionRows *rows);

#endif
