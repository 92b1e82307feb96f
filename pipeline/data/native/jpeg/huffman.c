/* The loops of the Huffman decoder, where most of a JPEG's time is spent.
 *
 * The way from one look to the next is a shift, a load and a shift: values and positions are
 * worked out beside it, and a look takes two symbols where they are short. Rare things end the
 * loop; the look is then undone, and symbols are taken one by one. */
#include "huffman.h"

#include <string.h>

#include "huffman_tables.h"
#include "../vectors.h"

static ALWAYS_INLINE uint64_t load_be64(const uint8_t *at) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t value;
    memcpy(&value, at, 8);
    return __builtin_bswap64(value);
#else
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | at[i];
    return value;
#endif
}

/* At least 56 bits are there afterwards. */
static ALWAYS_INLINE void refill(BitReader *reader) {
    reader->bits |= load_be64(reader->next) >> reader->count;
    reader->next += (63 - reader->count) >> 3;
    reader->count |= 56;
}

static ALWAYS_INLINE void take(BitReader *reader, uint64_t entry) {
    reader->bits <<= entry & 63; /* the mask costs nothing: shifts do it anyway */
    reader->count -= entry_bits(entry);
}

static ALWAYS_INLINE uint64_t look(const BitReader *reader, const AcTable *table) {
    return table->look[reader->bits >> (64 - LOOK_BITS)];
}

void reader_open(BitReader *reader, const uint8_t *bytes) {
    *reader = (BitReader){.next = bytes};
}

/* The value of `size` bits at the top of `bits` (T.81 F.2.2.1); 0 for none. */
static ALWAYS_INLINE int extend(uint64_t bits, unsigned size) {
    int value = (int)((bits >> 1) >> (63 - size));
    int is_negative = ~(int)((int64_t)bits >> 63);
    return value + (is_negative & (1 - (1 << size)));
}

/* Length of the code (at least `length`) and its symbol << 8, where no look has found it; or 0. */
static unsigned find_code(uint64_t bits, const LongCodes *codes, int length) {
    int32_t code = (int32_t)(bits >> 48);
    for (; length <= 16; length++) {
        if (code >= codes->end[length]) continue;
        int symbol = codes->offset[length] + (code >> (16 - length));
        return (unsigned)length | (unsigned)codes->code.symbols[symbol] << 8;
    }
    return 0;
}

/* The entry of the AC symbol at the top of at least 26 bits, of any length; 0: there is none. Not
 * given the reader, whose address would keep it out of the registers in the loops below. */
static uint64_t long_entry(uint64_t bits, const AcTable *table) {
    uint64_t entry = table->look[bits >> (64 - LOOK_BITS)];
    if (entry_move(entry) != MOVE_NONE) return entry;
    unsigned found = find_code(bits, &table->codes, 1);
    return found == 0 ? 0 : entry_of(found >> 8, found & 0xFF);
}

/* 0, or -1 where there is no such code. */
static ALWAYS_INLINE int read_dc(BitReader *reader, const DcTable *dc, int32_t *last_dc) {
    refill(reader);
    unsigned found = dc->look[reader->bits >> (64 - DC_BITS)];
    if (__builtin_expect(found == 0, 0)) {
        found = find_code(reader->bits, &dc->codes, DC_BITS + 1);
        if (found == 0) return -1;
    }
    unsigned length = found & 0xFF, size = found >> 8;
    /* Unsigned: a broken file may add up to anything, and is refused where it is used. */
    *last_dc = (int32_t)((uint32_t)*last_dc + (uint32_t)extend(reader->bits << length, size));
    take(reader, length + size);
    return 0;
}

/* Where a look was taken, to go back to if it was too much. */
typedef struct {
    uint64_t bits;
    unsigned count, position;
} Undo;

/* Why a loop over looks ended: was it the block's end? The number of positions, or 0. */
static ALWAYS_INLINE unsigned block_end(unsigned position) {
    if (position == 64) return 64;
    return position > MOVE_END && position < MOVE_END + 64 ? position - MOVE_END : 0;
}

static ALWAYS_INLINE void undo(BitReader *reader, const Undo *before) {
    reader->bits = before->bits;
    reader->count = before->count;
}

/* Store the symbols of a look and move on. A second symbol that is none is stored where the first
 * is, and before it. */
static ALWAYS_INLINE unsigned keep(BitReader *reader, const AcTable *ac, unsigned position,
                                   const uint8_t *order, int16_t *block, Undo *before) {
    uint64_t entry = look(reader, ac);
    *before = (Undo){reader->bits, reader->count, position};
    unsigned first = position + entry_first_move(entry);
    position += entry_move(entry);
    block[order[position - 1]] = (int16_t)entry_second(entry);
    block[order[first - 1]] = (int16_t)entry_first(entry, reader->bits);
    take(reader, entry);
    return position;
}

/* One symbol by itself, after an undone look; the new position, 0 where the code is broken. */
static ALWAYS_INLINE unsigned keep_one(BitReader *reader, const AcTable *ac, unsigned position,
                                       const uint8_t *order, int16_t *block) {
    refill(reader);
    uint64_t entry = long_entry(reader->bits, ac);
    if (entry == 0) return 0;
    position += entry_first_move(entry);
    block[order[position - 1]] = (int16_t)entry_first(entry, reader->bits);
    take(reader, entry_first_bits(entry));
    return position;
}

/* As vectors of their own: compilers make `rep stos` of a memset, ten times slower here. */
static ALWAYS_INLINE void clear(int16_t *block) {
    typedef int64_t Vector __attribute__((vector_size(16), may_alias));
    for (int i = 0; i < 8; i++) ((Vector *)(void *)block)[i] = (Vector){0, 0};
}

/* Returns how many of the zigzag may be other than zero, or 0 where the code is broken. */
static ALWAYS_INLINE int decode_block(BitReader *reader, const BlockTask *task,
                                      const uint8_t *order) {
    const AcTable *ac = task->ac;
    int32_t *last_dc = task->last_dc;
    int16_t *block = task->block;
    Undo before;
    unsigned position = 1, end;
    if (read_dc(reader, task->dc, last_dc) || *last_dc != (int16_t)*last_dc) return 0;
    clear(block);
    block[order[0]] = (int16_t)*last_dc;
    for (;;) {
        do { /* three looks of up to 18 bits each */
            refill(reader);
            position = keep(reader, ac, position, order, block, &before);
            if (position >= 64) break;
            position = keep(reader, ac, position, order, block, &before);
            if (position >= 64) break;
            position = keep(reader, ac, position, order, block, &before);
        } while (position < 64);
        end = block_end(position);
        if (end) break;
        undo(reader, &before);
        position = keep_one(reader, ac, before.position, order, block);
        if (position == 0) return 0;
        if (position < 64) continue;
        end = block_end(position);
        if (end == 0) return 0;
        break;
    }
    return (int)end;
}

/* Move on by as many symbols as a look tells of. */
static ALWAYS_INLINE unsigned leap(BitReader *reader, const AcTable *ac, unsigned position,
                                   Undo *before) {
    unsigned entry = ac->leap[reader->bits >> (64 - LEAP_BITS)];
    *before = (Undo){reader->bits, reader->count, position};
    take(reader, entry);
    return position + (entry >> 8);
}

/* To the end of the block. Values may reach beyond the table's bits here: two looks a refill. */
static ALWAYS_INLINE int skip_block(BitReader *reader, const BlockTask *task) {
    const AcTable *ac = task->ac;
    Undo before;
    unsigned position = 1;
    if (read_dc(reader, task->dc, task->last_dc)) return -1;
    do {
        do {
            refill(reader);
            position = leap(reader, ac, position, &before);
            if (position >= 64) break;
            position = leap(reader, ac, position, &before);
        } while (position < 64);
        if (block_end(position)) break;
        undo(reader, &before);
        refill(reader);
        uint64_t entry = long_entry(reader->bits, ac);
        if (entry == 0) return -1;
        take(reader, entry_first_bits(entry));
        position = before.position + entry_first_move(entry);
    } while (position < 64);
    return block_end(position) ? 0 : -1;
}

/* The reader is copied so that it can stay in registers from block to block. */
static ALWAYS_INLINE int decode_mcu(BitReader *shared, BlockTask *tasks, int num_tasks,
                                    const uint8_t *order) {
    BitReader reader = *shared;
    int status = 0;
    for (BlockTask *task = tasks; task < tasks + num_tasks && status == 0; task++) {
        if (task->block != NULL) {
            task->num = decode_block(&reader, task, order);
            if (task->num == 0) status = -1;
        } else {
            task->num = 0;
            status = skip_block(&reader, task);
        }
    }
    *shared = reader;
    return status;
}

static AVX2 int decode_mcu_avx2(BitReader *reader, BlockTask *tasks, int num_tasks,
                                const uint8_t *order) {
    return decode_mcu(reader, tasks, num_tasks, order);
}

int huffman_mcu(BitReader *reader, BlockTask *tasks, int num_tasks, const uint8_t order[256],
                bool vectors) {
    for (int i = 0; i < num_tasks; i++)
        if (tasks[i].block == NULL && !tasks[i].ac->has_leap) huffman_build_leap(tasks[i].ac);
    if (vectors) return decode_mcu_avx2(reader, tasks, num_tasks, order);
    return decode_mcu(reader, tasks, num_tasks, order);
}
