#include <math.h>
#include <string.h>

#include "ops.h"

enum { SOLARIZE_ADD_BELOW = 128 };

typedef uint8_t Table[256];

static void look_up_plain(uint8_t *at, size_t bytes, const Table tables[3]) {
    for (uint8_t *end = at + bytes; at < end; at += 3) {
        at[0] = tables[0][at[0]];
        at[1] = tables[1][at[1]];
        at[2] = tables[2][at[2]];
    }
}

#ifdef HAS_AVX2
#define VBMI __attribute__((target("avx512f,avx512bw,avx512vbmi")))
enum { REGISTER = 64, EVERY_THIRD = 3 * REGISTER };

/* A table is four registers; the highest bit of a value chooses between two and two. */
VBMI static inline __m512i permute(const __m512i table[4], __m512i values) {
    __m512i low = _mm512_permutex2var_epi8(table[0], values, table[1]);
    __m512i high = _mm512_permutex2var_epi8(table[2], values, table[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(values), low, high);
}

/* All tables for all bytes; of a register's bytes every third takes the same one. */
VBMI static void look_up_vbmi(uint8_t *at, size_t bytes, const Table tables[3]) {
    const __mmask64 thirds[3] = {0x9249249249249249, 0x2492492492492492, 0x4924924924924924};
    __m512i quarters[3][4];
    size_t done = 0;
    memcpy(quarters, tables, sizeof quarters);
    for (; done + EVERY_THIRD <= bytes; done += EVERY_THIRD)
        for (int k = 0; k < 3; k++) {
            uint8_t *place = at + done + k * REGISTER;
            __m512i values = _mm512_loadu_si512(place);
            __m512i found = permute(quarters[0], values);
            found = _mm512_mask_mov_epi8(found, thirds[(4 - k) % 3], permute(quarters[1], values));
            found = _mm512_mask_mov_epi8(found, thirds[(5 - k) % 3], permute(quarters[2], values));
            _mm512_storeu_si512(place, found);
        }
    look_up_plain(at + done, bytes - done, tables);
}

static bool has_vbmi(void) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi");
}
#else
#define look_up_vbmi look_up_plain
static bool has_vbmi(void) { return false; }
#endif

/* Replace each value by its entry in its channel's table. */
static void look_up(Picture *picture, const Table tables[3]) {
    bool vectors = picture->vectors && has_vbmi();
    (vectors ? look_up_vbmi : look_up_plain)(picture->now, picture_bytes(picture), tables);
}

OPS_BODY void extremes_body(const uint8_t *pixels, size_t bytes, uint8_t *low, uint8_t *high) {
    enum { BLOCK = 96 }; /* whole pixels and whole vectors */
    uint8_t lows[BLOCK], highs[BLOCK];
    memset(lows, 255, BLOCK);
    memset(highs, 0, BLOCK);
    for (; bytes >= BLOCK; bytes -= BLOCK, pixels += BLOCK)
        for (int i = 0; i < BLOCK; i++) {
            lows[i] = pixels[i] < lows[i] ? pixels[i] : lows[i];
            highs[i] = pixels[i] > highs[i] ? pixels[i] : highs[i];
        }
    for (size_t i = 0; i < bytes; i++) {
        lows[i] = pixels[i] < lows[i] ? pixels[i] : lows[i];
        highs[i] = pixels[i] > highs[i] ? pixels[i] : highs[i];
    }
    memcpy(low, lows, 3);
    memcpy(high, highs, 3);
    for (int i = 3; i < BLOCK; i++) {
        low[i % 3] = lows[i] < low[i % 3] ? lows[i] : low[i % 3];
        high[i % 3] = highs[i] > high[i % 3] ? highs[i] : high[i % 3];
    }
}

OPS_TWICE(extremes, (const uint8_t *pixels, size_t bytes, uint8_t *low, uint8_t *high),
          (pixels, bytes, low, high))

/* Source: autocontrast of Pillow's ImageOps, without a cutoff. */
static void stretch(Table table, int low, int high) {
    double scale = high > low ? 255.0 / (high - low) : 1.0;
    double offset = high > low ? -low * scale : 0.0;
    for (int v = 0; v < 256; v++) {
        double product = v * scale;
        double stretched = product + offset;
        table[v] = (uint8_t)(stretched < 0 ? 0 : stretched > 255 ? 255 : stretched);
    }
}

void values_auto_contrast(Picture *picture) {
    uint8_t low[3], high[3];
    Table tables[3];
    OPS_CHOOSE(extremes, picture->vectors)(picture->now, picture_bytes(picture), low, high);
    for (int c = 0; c < 3; c++) stretch(tables[c], low[c], high[c]);
    look_up(picture, tables);
}

/* Neighbours are often equal, so two counters take turns: none waits for its last store. */
static void count_values(const Picture *picture, uint32_t counts[2][3][256]) {
    size_t pixels = picture_bytes(picture) / 3;
    const uint8_t *at = picture->now;
    memset(counts, 0, 2 * sizeof *counts);
    for (size_t i = 0; i + 1 < pixels; i += 2, at += 6)
        for (int c = 0; c < 3; c++) {
            counts[0][c][at[c]]++;
            counts[1][c][at[3 + c]]++;
        }
    for (int c = 0; c < 3 && pixels % 2; c++) counts[0][c][at[c]]++;
}

/* Source: equalize of Pillow's ImageOps. */
static void even_out(Table table, const uint32_t counts[256], uint32_t total) {
    int last = 255;
    while (counts[last] == 0) last--;
    uint32_t step = (total - counts[last]) / 255, below = step / 2;
    for (int v = 0; v < 256; v++) {
        uint32_t even = step > 0 ? below / step : (uint32_t)v;
        table[v] = even > 255 ? 255 : (uint8_t)even;
        below += counts[v];
    }
}

void values_equalize(Picture *picture) {
    uint32_t counts[2][3][256];
    Table tables[3];
    count_values(picture, counts);
    for (int c = 0; c < 3; c++) {
        for (int v = 0; v < 256; v++) counts[0][c][v] += counts[1][c][v];
        even_out(tables[c], counts[0][c], (uint32_t)(picture_bytes(picture) / 3));
    }
    look_up(picture, tables);
}

/* Where the value alone decides, arithmetic on many bytes at once is faster than a table. */
OPS_BODY void fold_body(uint8_t *at, size_t bytes, uint8_t first) {
    for (size_t i = 0; i < bytes; i++) at[i] = at[i] >= first ? (uint8_t)~at[i] : at[i];
}

OPS_BODY void mask_body(uint8_t *at, size_t bytes, uint8_t mask) {
    for (size_t i = 0; i < bytes; i++) at[i] &= mask;
}

OPS_BODY void add_body(uint8_t *at, size_t bytes, uint8_t addition) {
    uint8_t room = (uint8_t)(255 - addition);
    for (size_t i = 0; i < bytes; i++) {
        uint8_t sum = at[i] > room ? 255 : (uint8_t)(at[i] + addition);
        at[i] = at[i] < SOLARIZE_ADD_BELOW ? sum : at[i];
    }
}

OPS_TWICE(fold, (uint8_t *at, size_t bytes, uint8_t first), (at, bytes, first))
OPS_TWICE(mask, (uint8_t *at, size_t bytes, uint8_t mask), (at, bytes, mask))
OPS_TWICE(add, (uint8_t *at, size_t bytes, uint8_t addition), (at, bytes, addition))

void values_posterize(Picture *picture, double bits) {
    int kept = bits < 0 ? 0 : bits > 8 ? 8 : (int)bits;
    OPS_CHOOSE(mask, picture->vectors)(picture->now, picture_bytes(picture), 0xff00 >> kept);
}

void values_solarize(Picture *picture, double threshold) {
    double first = ceil(threshold);
    if (first > 255) return;
    OPS_CHOOSE(fold, picture->vectors)
    (picture->now, picture_bytes(picture), first < 0 ? 0 : (uint8_t)first);
}

void values_solarize_add(Picture *picture, double addition) {
    uint8_t most = addition < 0 ? 0 : addition > 255 ? 255 : (uint8_t)addition;
    OPS_CHOOSE(add, picture->vectors)(picture->now, picture_bytes(picture), most);
}
