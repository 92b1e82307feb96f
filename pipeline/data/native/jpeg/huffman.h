/* Huffman decoding of blocks (T.81 F.2.2), with and without keeping what is decoded.
 *
 * The reader wants plain bits: the caller has taken the zeros behind each FF out of the bytes, and
 * READER_SLACK bytes of zeros lie behind their end, which is looked at once per MCU.
 */
#ifndef HUFFMAN_H
#define HUFFMAN_H

#include <stdbool.h>
#include <stdint.h>

#include "header.h"

/* Bits that one look covers, small enough for the tables of an image to stay in the L1 cache:
 * codes of DC (rarely more than 9), symbols of AC with their values, and symbols to skip. */
#define DC_BITS 9
#define LOOK_BITS 10
#define LEAP_BITS 11

/* One block is at most a DC of 16 + 11 bits and 63 AC of 16 + 10; an MCU ten of them. */
#define READER_SLACK 2560

typedef struct {
    const uint8_t *next;
    uint64_t bits; /* left-aligned; below `count` bits already lies what `next` points to */
    unsigned count;
} BitReader;

/* What both kinds of table need for codes longer than a look. */
typedef struct {
    int32_t end[17];    /* first code behind those of a length, left-aligned to 16 bits */
    int32_t offset[17]; /* from a code of a length to its symbol */
    HuffmanCode code;
    int is_built;
} LongCodes;

typedef struct {
    uint16_t look[1 << DC_BITS]; /* bits of the code, bits of the value << 8 */
    LongCodes codes;
} DcTable;

typedef struct {
    uint64_t look[1 << LOOK_BITS];  /* entries: huffman_tables.h */
    uint16_t leap[1 << LEAP_BITS];  /* bits, positions << 8 */
    LongCodes codes;
    int has_leap;
} AcTable;

/* Keep what is there where the code is the same as last time. -1: no valid set of codes. */
int huffman_build_dc(DcTable *table, const HuffmanCode *code);
int huffman_build_ac(AcTable *table, const HuffmanCode *code);

/* What skipping wants besides; huffman_mcu() calls it. */
void huffman_build_leap(AcTable *table);

void reader_open(BitReader *reader, const uint8_t *bytes);

/* One block to be decoded. */
typedef struct {
    const DcTable *dc;
    AcTable *ac;
    int32_t *last_dc;
    int16_t *block; /* 80, at a multiple of 32: 64 coefficients and one that takes what is nobody's;
                       NULL: the block is skipped */
    int num;        /* how many of the zigzag may be other than zero; 0 for a skipped one */
} BlockTask;

/* Decode the blocks of one MCU, coefficient i of the zigzag to order[i]; order[64..255] must be
 * 64. 0, or -1 where a code is broken. */
int huffman_mcu(BitReader *reader, BlockTask *tasks, int num_tasks, const uint8_t order[256],
                bool vectors);

#endif
