/* The building of Huffman tables (T.81 C.2): a few microseconds, for every image anew where its
 * tables are its own. */
#include "huffman_tables.h"

#include <string.h>

#define MAX_DC_BITS 11 /* what samples of 8 bits can come to */
#define MAX_AC_BITS 10
#define NUM_LOOKS (1 << LOOK_BITS)
#define MAX_LOOK 18 /* bits; three looks must do with the 56 that a refill gives */
#define NO_ENTRY (MOVE_NONE << 8 | MOVE_NONE << 16) /* what it stores is nobody's */

static int is_valid_dc(unsigned symbol) { return symbol <= MAX_DC_BITS; }

static int is_valid_ac(unsigned symbol) {
    unsigned size = symbol & 15;
    return size ? size <= MAX_AC_BITS : symbol == 0 || symbol == 0xF0;
}

/* Find where the codes of each length lie; -1 where they are too many or mean nothing. */
static int order_codes(LongCodes *codes, int (*is_valid)(unsigned)) {
    int32_t next = 0;
    for (int length = 1, symbol = 0; length <= 16; length++) {
        int32_t step = 1 << (16 - length), num = codes->code.counts[length - 1];
        codes->offset[length] = symbol - next / step;
        next += num * step;
        symbol += num;
        /* The code of ones alone is kept free (T.81 C.2). */
        if (num > 0 && next >= 1 << 16) return -1;
        codes->end[length] = next;
    }
    for (int i = 0; i < codes->code.num_symbols; i++)
        if (!is_valid(codes->code.symbols[i])) return -1;
    return 0;
}

/* What an AC code stands for. */
static uint64_t single_of(unsigned symbol, unsigned length) {
    uint64_t entry = entry_of(symbol, length);
    return entry_bits(entry) <= MAX_LOOK ? entry : NO_ENTRY;
}

static void fill_singles(const LongCodes *codes, uint64_t *looks) {
    int32_t next = 0; /* left-aligned to 16 bits */
    for (int i = 0; i < NUM_LOOKS; i++) looks[i] = NO_ENTRY;
    for (int length = 1, symbol = 0; length <= LOOK_BITS; length++) {
        int num = 1 << (LOOK_BITS - length);
        for (; next < codes->end[length]; symbol++, next += 1 << (16 - length)) {
            uint64_t entry = single_of(codes->code.symbols[symbol], (unsigned)length);
            uint64_t *first = looks + (next >> (16 - LOOK_BITS));
            for (int i = 0; i < num; i++) first[i] = entry;
        }
    }
}

/* Add the symbol behind the first where the look holds its code and value. */
static uint64_t join(const uint64_t *singles, unsigned index) {
    uint64_t first = singles[index];
    unsigned bits = entry_bits(first);
    if (entry_move(first) >= MOVE_END || bits >= LOOK_BITS) return first;
    unsigned rest = index << bits & (NUM_LOOKS - 1);
    uint64_t second = singles[rest];
    if (entry_move(second) > MOVE_END || entry_bits(second) > LOOK_BITS - bits) return first;
    int value = entry_first(second, (uint64_t)rest << (64 - LOOK_BITS));
    /* Bits and moves add up without a carry: to 10, and to 16 + 128. */
    return first + (second & 0xFFFF) + ((uint64_t)(uint16_t)value << 48);
}

static int is_same(const LongCodes *codes, const HuffmanCode *code) {
    return codes->is_built && !memcmp(&codes->code, code, sizeof *code);
}

int huffman_build_dc(DcTable *table, const HuffmanCode *code) {
    LongCodes *codes = &table->codes;
    if (is_same(codes, code)) return 0;
    codes->code = *code;
    codes->is_built = 0;
    if (order_codes(codes, is_valid_dc)) return -1;
    memset(table->look, 0, sizeof table->look);
    int32_t next = 0;
    for (int length = 1, symbol = 0; length <= DC_BITS; length++) {
        for (; next < codes->end[length]; symbol++, next += 1 << (16 - length))
            for (int i = 0; i < 1 << (DC_BITS - length); i++)
                table->look[(next >> (16 - DC_BITS)) + i] =
                    (uint16_t)(length | code->symbols[symbol] << 8);
    }
    codes->is_built = 1;
    return 0;
}

int huffman_build_ac(AcTable *table, const HuffmanCode *code) {
    uint64_t singles[NUM_LOOKS];
    if (is_same(&table->codes, code)) return 0;
    table->codes.code = *code;
    table->codes.is_built = table->has_leap = 0;
    if (order_codes(&table->codes, is_valid_ac)) return -1;
    fill_singles(&table->codes, singles);
    for (unsigned i = 0; i < NUM_LOOKS; i++) table->look[i] = join(singles, i);
    table->codes.is_built = 1;
    return 0;
}

/* As many symbols as have their codes in the known bits, up to the end of the block. */
static uint16_t leap_from(const AcTable *table, unsigned known) {
    unsigned bits = 0, move = 0;
    while (bits < LEAP_BITS && move < MOVE_END) {
        unsigned rest = known << bits & ((1 << LEAP_BITS) - 1), left = LEAP_BITS - bits;
        uint64_t entry = table->look[rest >> (LEAP_BITS - LOOK_BITS)];
        unsigned more = entry_bits(entry), step = entry_move(entry);
        if (step == MOVE_NONE) break;
        if (more > left && step != entry_first_move(entry))
            more = entry_first_bits(entry), step = entry_first_move(entry);
        /* Of a first symbol's bits those of its value may lie beyond: that many ones, or more. */
        if (more > left && entry_mask(entry) >> (more - left - 1) == 0) break;
        if ((step & 127) + move > 63) break;
        bits += more;
        move += step;
    }
    return (uint16_t)(bits ? bits | move << 8 : MOVE_NONE << 8);
}

void huffman_build_leap(AcTable *table) {
    for (unsigned i = 0; i < 1 << LEAP_BITS; i++) table->leap[i] = leap_from(table, i);
    table->has_leap = 1;
}
