#include "resize.h"

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

enum { HALF = 1 << (TAPS_BITS - 1), BLOCK = 32 };

static inline uint8_t to_byte(uint32_t sum) {
    int32_t value = (int32_t)sum >> TAPS_BITS;
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

static void across_plain(const uint8_t *rgbx, uint8_t *out, const Taps *taps) {
    for (int x = 0; x < taps->out; x++) {
        const uint8_t *from = rgbx + 4 * (size_t)taps->first[x];
        uint32_t sums[3] = {HALF, HALF, HALF};
        for (int i = 0; i < taps->count[x]; i++) {
            uint32_t weight = (uint32_t)taps_weight(taps, x, i);
            for (int c = 0; c < 3; c++) sums[c] += from[4 * i + c] * weight;
        }
        for (int c = 0; c < 3; c++) out[3 * (size_t)x + c] = to_byte(sums[c]);
    }
}

static void down_plain(const uint8_t *const *rows, uint8_t *out, size_t width, const Taps *taps,
                       int y) {
    for (size_t start = 0; start < width; start += BLOCK) {
        size_t count = width - start < BLOCK ? width - start : BLOCK;
        uint32_t sums[BLOCK];
        for (size_t x = 0; x < BLOCK; x++) sums[x] = HALF;
        for (int i = 0; i < taps->count[y]; i++) {
            uint32_t weight = (uint32_t)taps_weight(taps, y, i);
            for (size_t x = 0; x < BLOCK; x++) sums[x] += rows[i][start + x] * weight;
        }
        for (size_t x = 0; x < count; x++) out[start + x] = to_byte(sums[x]);
    }
}

#ifdef HAS_AVX2
/* The halves of the weights are multiplied by themselves in 16 bits, two taps at once: exact, and
 * half the work of products in 32 bits. */
AVX2 static inline __m256i join(__m256i high, __m256i low) {
    return _mm256_add_epi32(_mm256_slli_epi32(high, TAPS_LOW_BITS), low);
}

/* Four taps of two outputs, one in each half of a vector: bytes of a channel side by side, then
 * the sums of the first two taps and of the last two. */
AVX2 static inline void add_group(const uint8_t *even, const uint8_t *odd, const int16_t *weights,
                                  __m256i *high, __m256i *low) {
    const __m256i pairs = _mm256_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15,
                                           0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const __m256i zero = _mm256_setzero_si256();
    __m256i pixels = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)even));
    pixels = _mm256_inserti128_si256(pixels, _mm_loadu_si128((const __m128i *)odd), 1);
    pixels = _mm256_shuffle_epi8(pixels, pairs);
    __m256i first = _mm256_unpacklo_epi8(pixels, zero), last = _mm256_unpackhi_epi8(pixels, zero);
    __m256i w = _mm256_loadu_si256((const __m256i *)weights);
    *high = _mm256_add_epi32(*high, _mm256_madd_epi16(first, _mm256_shuffle_epi32(w, 0x00)));
    *high = _mm256_add_epi32(*high, _mm256_madd_epi16(last, _mm256_shuffle_epi32(w, 0x55)));
    *low = _mm256_add_epi32(*low, _mm256_madd_epi16(first, _mm256_shuffle_epi32(w, 0xAA)));
    *low = _mm256_add_epi32(*low, _mm256_madd_epi16(last, _mm256_shuffle_epi32(w, 0xFF)));
}

/* Writes up to four bytes behind the last pixel. `groups` is a constant where it is inlined. */
AVX2 static inline __attribute__((always_inline)) void across_groups(const uint8_t *rgbx,
                                                                     uint8_t *out, const Taps *taps,
                                                                     int groups) {
    const int16_t *weights = taps->weights;
    const int *first = taps->first;
    const int pairs = (taps->out + 1) / 2;
    for (int pair = 0; pair < pairs; pair++, first += 2, out += 6) {
        const uint8_t *even = rgbx + 4 * (size_t)first[0], *odd = rgbx + 4 * (size_t)first[1];
        __m256i high = _mm256_setzero_si256(), low = _mm256_set1_epi32(HALF);
        for (int group = 0; group < groups; group++, weights += TAPS_PAIR)
            add_group(even + 16 * group, odd + 16 * group, weights, &high, &low);
        __m256i sums = _mm256_srai_epi32(join(high, low), TAPS_BITS);
        sums = _mm256_packs_epi32(sums, sums);
        sums = _mm256_packus_epi16(sums, sums);
        int32_t left = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums));
        int32_t right = _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1));
        memcpy(out, &left, sizeof left);
        memcpy(out + 3, &right, sizeof right);
    }
}

AVX2 static void across_avx2(const uint8_t *rgbx, uint8_t *out, const Taps *taps) {
    switch (taps->groups) {
        case 1: across_groups(rgbx, out, taps, 1); break;
        case 2: across_groups(rgbx, out, taps, 2); break;
        case 3: across_groups(rgbx, out, taps, 3); break;
        default: across_groups(rgbx, out, taps, taps->groups);
    }
}

/* Two rows of 8 bytes in each half: multiply by the pair's weights, add to sums of 4 and 4. */
AVX2 static inline void add_pair(__m256i bytes, __m256i w, __m256i v, __m256i *high,
                                 __m256i *low) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i first = _mm256_unpacklo_epi8(bytes, zero), second = _mm256_unpackhi_epi8(bytes, zero);
    high[0] = _mm256_add_epi32(high[0], _mm256_madd_epi16(first, w));
    high[1] = _mm256_add_epi32(high[1], _mm256_madd_epi16(second, w));
    low[0] = _mm256_add_epi32(low[0], _mm256_madd_epi16(first, v));
    low[1] = _mm256_add_epi32(low[1], _mm256_madd_epi16(second, v));
}

AVX2 static inline __m256i both(const int16_t *weights) {
    int32_t pair;
    memcpy(&pair, weights, sizeof pair);
    return _mm256_set1_epi32(pair);
}

/* 32 columns of one output row; rows[] has a readable row for a tap too many. */
AVX2 static inline __m256i down_block(const uint8_t *const *rows, size_t x, const Taps *taps,
                                      int y) {
    const __m256i half = _mm256_set1_epi32(HALF), zero = _mm256_setzero_si256();
    __m256i high[4] = {zero, zero, zero, zero}, low[4] = {half, half, half, half};
    for (int i = 0; i < taps->count[y]; i += 2) {
        const int16_t *weights = taps_group(taps, y, i) + i % TAPS_GROUP;
        __m256i a = _mm256_loadu_si256((const __m256i *)(rows[i] + x));
        __m256i b = _mm256_loadu_si256((const __m256i *)(rows[i + 1] + x));
        __m256i w = both(weights), v = both(weights + TAPS_GROUP);
        add_pair(_mm256_unpacklo_epi8(a, b), w, v, high, low);
        add_pair(_mm256_unpackhi_epi8(a, b), w, v, high + 2, low + 2);
    }
    for (int i = 0; i < 4; i++) low[i] = _mm256_srai_epi32(join(high[i], low[i]), TAPS_BITS);
    return _mm256_packus_epi16(_mm256_packs_epi32(low[0], low[1]),
                               _mm256_packs_epi32(low[2], low[3]));
}

AVX2 static void down_avx2(const uint8_t *const *rows, uint8_t *out, size_t width,
                           const Taps *taps, int y) {
    size_t x = 0;
    for (; x + BLOCK <= width; x += BLOCK) {
        __m256i bytes = down_block(rows, x, taps, y);
        _mm256_storeu_si256((__m256i *)(out + x), bytes);
    }
    if (x < width) {
        uint8_t last[BLOCK];
        __m256i bytes = down_block(rows, x, taps, y);
        _mm256_storeu_si256((__m256i *)last, bytes);
        memcpy(out + x, last, width - x);
    }
}
#else
#define across_avx2 across_plain
#define down_avx2 down_plain
#endif

/* Source: the choice that Pillow 13.0 makes for its own resize. */
static bool goes_down_first(int in_width, int in_height, int out_width, int out_height) {
    return in_height > out_height && in_height - out_height > 2 * (in_width - out_width);
}

int resize_begin(Resize *resize, int in_width, int in_height, int out_width, int out_height,
                 int filter, bool flip, bool vectors, uint8_t *out) {
    memset(resize, 0, sizeof *resize);
    if (taps_make(&resize->across, in_width, out_width, filter, flip) ||
        taps_make(&resize->down, in_height, out_height, filter, false))
        return -1;
    size_t in_bytes = 4 * (size_t)in_width, out_bytes = 3 * (size_t)out_width;
    resize->down_first = goes_down_first(in_width, in_height, out_width, out_height);
    resize->vectors = vectors && has_vectors();
    resize->in_width = in_width;
    resize->out = out;
    resize->kept = taps_span(&resize->down);
    resize->slack = 16 * (size_t)resize->across.groups + BLOCK;
    resize->stride = (resize->down_first ? in_bytes : out_bytes) + resize->slack;
    resize->ring = calloc((size_t)resize->kept, resize->stride);
    resize->middle = calloc(in_bytes + out_bytes + 2 * resize->slack, 1);
    resize->line = resize->middle == NULL ? NULL : resize->middle + in_bytes + resize->slack;
    resize->rows = malloc(sizeof(uint8_t *) * ((size_t)resize->down.groups * TAPS_GROUP + 1));
    return resize->ring == NULL || resize->line == NULL || resize->rows == NULL ? -1 : 0;
}

static void across(const Resize *resize, const uint8_t *rgbx, uint8_t *out) {
    (resize->vectors ? across_avx2 : across_plain)(rgbx, out, &resize->across);
}

static void down(const Resize *resize, int y, size_t width, uint8_t *out) {
    (resize->vectors ? down_avx2 : down_plain)(resize->rows, out, width, &resize->down, y);
}

static uint8_t *kept_row(const Resize *resize, int row) {
    return resize->ring + (size_t)(row % resize->kept) * resize->stride;
}

static void write_row(Resize *resize, int y) {
    size_t width = 3 * (size_t)resize->across.out;
    uint8_t *out = resize->out + width * y;
    int first = resize->down.first[y], count = resize->down.count[y];
    for (int i = 0; i < count; i++) resize->rows[i] = kept_row(resize, first + i);
    resize->rows[count] = resize->rows[count - 1];
    if (!resize->down_first) {
        down(resize, y, width, out);
        return;
    }
    down(resize, y, 4 * (size_t)resize->in_width, resize->middle);
    across(resize, resize->middle, resize->line);
    memcpy(out, resize->line, width);
}

void resize_row(Resize *resize, const uint8_t *rgbx) {
    const Taps *taps = &resize->down;
    int row = resize->next_in++;
    if (resize->next_out == taps->out) return;
    if (resize->down_first)
        memcpy(kept_row(resize, row), rgbx, 4 * (size_t)resize->in_width);
    else
        across(resize, rgbx, kept_row(resize, row));
    while (resize->next_out < taps->out &&
           taps->first[resize->next_out] + taps->count[resize->next_out] <= row + 1)
        write_row(resize, resize->next_out++);
}

void resize_end(Resize *resize) {
    taps_free(&resize->across);
    taps_free(&resize->down);
    free(resize->ring);
    free(resize->middle);
    free(resize->rows);
}
