/* What a look into an AC table returns: one symbol or two, as 64 bits.
 *
 *  0..7   bits of all symbols, codes and values
 *  8..15  positions that the symbols move on by, or one of the numbers below
 * 16..23  positions of the first symbol
 * 24..31  64 less the bits of the first symbol: what shifts its value down
 * 32..47  ones for the bits of the first symbol's value, which may lie beyond the look
 * 48..63  value of the second symbol
 *
 * Moves beyond a block's 64 positions: the loops over symbols then end by one comparison, and sort
 * out why afterwards. */
#ifndef HUFFMAN_TABLES_H
#define HUFFMAN_TABLES_H

#include <stdint.h>

#include "huffman.h"

enum {
    MOVE_END = 128,   /* end of block */
    MOVE_NONE = 192, /* a code longer than the look, a very long value, or no code at all */
};

static inline unsigned entry_bits(uint64_t entry) { return entry & 0xFF; }
static inline unsigned entry_move(uint64_t entry) { return entry >> 8 & 0xFF; }
static inline unsigned entry_first_move(uint64_t entry) { return entry >> 16 & 0xFF; }
static inline unsigned entry_first_bits(uint64_t entry) { return 64 - (entry >> 24 & 0xFF); }
static inline unsigned entry_mask(uint64_t entry) { return entry >> 32 & 0xFFFF; }
static inline int entry_second(uint64_t entry) { return (int16_t)(entry >> 48); }

/* The entry of a single symbol. */
static inline uint64_t entry_of(unsigned symbol, unsigned length) {
    unsigned size = symbol & 15, bits = length + size;
    unsigned move = symbol == 0 ? MOVE_END : (symbol >> 4) + 1;
    return bits | move << 8 | move << 16 | (uint64_t)(64 - bits) << 24 |
           ((1ull << size) - 1) << 32;
}

/* The value of the first symbol, which stands at the top of `bits` (T.81 F.2.2.1). */
static inline int entry_first(uint64_t entry, uint64_t bits) {
    int mask = (int)entry_mask(entry);
    int raw = (int)(bits >> (entry >> 24 & 63)) & mask, negative = raw - mask;
    return raw <= mask >> 1 ? negative : raw;
}

#endif
