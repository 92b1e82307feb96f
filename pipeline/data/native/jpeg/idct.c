/* Written as two matrix products (even and odd half) because that is what vectors are good at;
 * sums are exact in 32 bits for any 16 bit input, so the order of additions does not matter:
 * 32768 * (2 * 8192 + 4433 + 10704 + 11363 + 2260 + 6436 + 9634) < 2^31. */
#include "idct.h"

#include "../vectors.h"

#define X 64 /* nobody's */
#define X8 X, X, X, X, X, X, X, X
#define X64 X8, X8, X8, X8, X8, X8, X8, X8
const uint8_t idct_order[256] = {
    0, 8, 32, 16, 40, 4, 10, 36, 24, 33, 1, 41, 20, 42, 2, 12,
    34, 26, 37, 9, 48, 17, 56, 5, 43, 18, 44, 6, 14, 38, 28, 35,
    11, 52, 25, 49, 57, 21, 58, 3, 45, 22, 46, 30, 39, 13, 50, 27,
    53, 59, 19, 60, 7, 47, 15, 54, 29, 51, 61, 23, 62, 31, 55, 63,
    X64, X64, X64};

enum { FIRST_SHIFT = 11, SECOND_SHIFT = 18, CENTRE = 128 };

/* A picture's coefficients are at most 1024 and what quantisation adds, and the first pass makes
 * little more of them. Sums of two below these bounds fit in 16 bits. */
enum { MAX_INPUT = 4096, MAX_MIDDLE = 8192 };

/* One dimension; in the order of pairs: x0 x4, x2 x6, x1 x3, x5 x7. */
static void transform(const int32_t x[8], int32_t out[8], int shift) {
    int32_t half = 1 << (shift - 1);
    int32_t sum = 8192 * (x[0] + x[1]) + half, difference = 8192 * (x[0] - x[1]) + half;
    int32_t low = 4433 * x[2] - 10704 * x[3], high = 10703 * x[2] + 4433 * x[3];
    int32_t even[4] = {sum + high, difference + low, difference - low, sum - high};
    int32_t odd[4] = {11363 * x[4] + 9633 * x[5] + 6437 * x[6] + 2260 * x[7],
                      9633 * x[4] - 2259 * x[5] - 11362 * x[6] - 6436 * x[7],
                      6437 * x[4] - 11362 * x[5] + 2261 * x[6] + 9633 * x[7],
                      2260 * x[4] - 6436 * x[5] + 9633 * x[6] - 11363 * x[7]};
    for (int i = 0; i < 4; i++) {
        out[i] = (even[i] + odd[i]) >> shift;
        out[7 - i] = (even[i] - odd[i]) >> shift;
    }
}

static int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

static int is_beyond(int32_t value, int32_t limit) { return value <= -limit || value >= limit; }

static int idct_portable(const int16_t *block, const int16_t *quant, uint8_t *out,
                         size_t stride) {
    int32_t half[8][8]; /* row, place of the column */
    int beyond = 0;
    for (int place = 0; place < 8; place++) {
        int32_t x[8], column[8];
        for (int i = 0; i < 8; i++) {
            int at = i / 2 * 16 + place * 2 + i % 2;
            x[i] = (int16_t)(uint16_t)((int32_t)block[at] * quant[at]);
            beyond |= is_beyond(x[i], MAX_INPUT);
        }
        transform(x, column, FIRST_SHIFT);
        for (int i = 0; i < 8; i++) {
            half[i][place] = clamp(column[i], INT16_MIN, INT16_MAX);
            beyond |= is_beyond(half[i][place], MAX_MIDDLE);
        }
    }
    for (int y = 0; y < 8; y++) {
        int32_t row[8];
        transform(half[y], row, SECOND_SHIFT);
        for (int i = 0; i < 8; i++)
            out[stride * (size_t)y + (size_t)i] = (uint8_t)(clamp(row[i], -128, 127) + CENTRE);
    }
    return -beyond;
}

#ifdef HAS_AVX2
/* The constants of a pair of inputs, for one output. */
static inline AVX2 __m256i pair(int first, int second) {
    return _mm256_set1_epi32((int32_t)((uint32_t)second << 16 | ((uint32_t)first & 0xFFFF)));
}

static inline AVX2 __m256i dot(__m256i a, __m256i ka, __m256i b, __m256i kb) {
    return _mm256_add_epi32(_mm256_madd_epi16(a, ka), _mm256_madd_epi16(b, kb));
}

/* As transform(), on eight columns or rows; pairs are x0 x4, x2 x6, x1 x3, x5 x7. With `is_small`
 * x4 to x7 are zero, and half of the products go. */
static ALWAYS_INLINE AVX2 void
transform_avx2(const __m256i pairs[4], __m256i out[8], int shift, int is_small) {
    __m256i half = _mm256_set1_epi32(1 << (shift - 1)), odd[4];
    __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(pairs[0], pair(8192, 8192)), half);
    __m256i difference =
        is_small ? sum
                 : _mm256_add_epi32(_mm256_madd_epi16(pairs[0], pair(8192, -8192)), half);
    __m256i low = _mm256_madd_epi16(pairs[1], pair(4433, -10704));
    __m256i high = _mm256_madd_epi16(pairs[1], pair(10703, 4433));
    if (is_small) {
        odd[0] = _mm256_madd_epi16(pairs[2], pair(11363, 9633));
        odd[1] = _mm256_madd_epi16(pairs[2], pair(9633, -2259));
        odd[2] = _mm256_madd_epi16(pairs[2], pair(6437, -11362));
        odd[3] = _mm256_madd_epi16(pairs[2], pair(2260, -6436));
    } else {
        odd[0] = dot(pairs[2], pair(11363, 9633), pairs[3], pair(6437, 2260));
        odd[1] = dot(pairs[2], pair(9633, -2259), pairs[3], pair(-11362, -6436));
        odd[2] = dot(pairs[2], pair(6437, -11362), pairs[3], pair(2261, 9633));
        odd[3] = dot(pairs[2], pair(2260, -6436), pairs[3], pair(9633, -11363));
    }
    __m256i even[4] = {_mm256_add_epi32(sum, high), _mm256_add_epi32(difference, low),
                       _mm256_sub_epi32(difference, low), _mm256_sub_epi32(sum, high)};
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_srai_epi32(_mm256_add_epi32(even[i], odd[i]), shift);
        out[7 - i] = _mm256_srai_epi32(_mm256_sub_epi32(even[i], odd[i]), shift);
    }
}

static inline AVX2 __m256i pick(__m256i a, __m256i b, int which) {
    __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_castps_si256(which ? _mm256_shuffle_ps(x, y, 0xDD)
                                     : _mm256_shuffle_ps(x, y, 0x88));
}

/* Rows of eight columns (in the order of pairs) to pairs of columns of eight rows. */
static inline AVX2 void turn(const __m256i rows[8], __m256i pairs[4]) {
    __m256i a = _mm256_packs_epi32(rows[0], rows[1]), b = _mm256_packs_epi32(rows[2], rows[3]);
    __m256i c = _mm256_packs_epi32(rows[4], rows[5]), d = _mm256_packs_epi32(rows[6], rows[7]);
    __m256i even_top = pick(a, b, 0), even_bottom = pick(c, d, 0);
    __m256i odd_top = pick(a, b, 1), odd_bottom = pick(c, d, 1);
    pairs[0] = _mm256_permute2x128_si256(even_top, even_bottom, 0x20);
    pairs[1] = _mm256_permute2x128_si256(odd_top, odd_bottom, 0x20);
    pairs[2] = _mm256_permute2x128_si256(even_top, even_bottom, 0x31);
    pairs[3] = _mm256_permute2x128_si256(odd_top, odd_bottom, 0x31);
}

static inline AVX2 __m256i squeeze(const __m256i columns[4]) {
    const __m256i turned = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
                                            0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(columns[0], columns[1]),
                                       _mm256_packs_epi32(columns[2], columns[3]));
    bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8((char)CENTRE));
    return _mm256_shuffle_epi8(bytes, turned);
}

/* Columns of eight rows to rows of bytes. */
static inline AVX2 void put(const __m256i columns[8], uint8_t *out, size_t stride) {
    __m256i left = squeeze(columns), right = squeeze(columns + 4);
    __m256i a = _mm256_unpacklo_epi32(left, right), b = _mm256_unpackhi_epi32(left, right);
    __m128i parts[4] = {_mm256_castsi256_si128(a), _mm256_castsi256_si128(b),
                        _mm256_extracti128_si256(a, 1), _mm256_extracti128_si256(b, 1)};
    for (int i = 0; i < 4; i++, out += 2 * stride) {
        _mm_storel_epi64((__m128i *)(void *)out, parts[i]);
        _mm_storeh_pd((double *)(void *)(out + stride), _mm_castsi128_pd(parts[i]));
    }
}

/* As is_beyond(), for any of the values and a limit that is a power of two. */
static inline AVX2 int are_beyond(const __m256i pairs[4], int limit) {
    __m256i bits = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) bits = _mm256_or_si256(bits, _mm256_abs_epi16(pairs[i]));
    return !_mm256_testz_si256(bits, _mm256_set1_epi16((short)-limit));
}

static ALWAYS_INLINE AVX2 int
idct_avx2(const int16_t *block, const int16_t *quant, uint8_t *out, size_t stride, int is_small) {
    const __m256i *in = (const void *)block, *factors = (const void *)quant;
    __m256i pairs[4], lines[8];
    for (int i = 0; i < 4; i++)
        pairs[i] = _mm256_mullo_epi16(_mm256_load_si256(in + i), _mm256_load_si256(factors + i));
    int beyond = are_beyond(pairs, MAX_INPUT);
    transform_avx2(pairs, lines, FIRST_SHIFT, is_small);
    turn(lines, pairs);
    beyond |= are_beyond(pairs, MAX_MIDDLE);
    transform_avx2(pairs, lines, SECOND_SHIFT, is_small);
    put(lines, out, stride);
    return -beyond;
}

static AVX2 int idct_whole(const int16_t *block, const int16_t *quant, uint8_t *out,
                           size_t stride) {
    return idct_avx2(block, quant, out, stride, 0);
}

static AVX2 int idct_corner(const int16_t *block, const int16_t *quant, uint8_t *out,
                            size_t stride) {
    return idct_avx2(block, quant, out, stride, 1);
}
#else
#define idct_whole idct_portable
#define idct_corner idct_portable
#endif

/* Only the mean: both passes come down to one rounding. */
static int idct_flat(int32_t mean, uint8_t *out, size_t stride) {
    uint64_t sample = (uint64_t)(clamp((mean + 4) >> 3, -128, 127) + CENTRE);
    sample *= 0x0101010101010101u;
    for (int y = 0; y < 8; y++, out += stride) __builtin_memcpy(out, &sample, 8);
    return -is_beyond(mean, MAX_MIDDLE / 4);
}

int idct_block(const int16_t *block, const int16_t *quant, int num, uint8_t *out, size_t stride,
               bool vectors) {
    if (num == 1)
        return idct_flat((int16_t)(uint16_t)((int32_t)block[0] * quant[0]), out, stride);
    if (!vectors) return idct_portable(block, quant, out, stride);
    /* The first ten of the zigzag are the corner of 4 x 4 and no more. */
    return num <= 10 ? idct_corner(block, quant, out, stride)
                     : idct_whole(block, quant, out, stride);
}
