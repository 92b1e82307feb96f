/* Sixteen pixels at a time where the processor can, and the same bits where it cannot. */
#include "color.h"

#include <string.h>

#include "../vectors.h"

/* JFIF's factors in 16 bits: 1.402, 1.772, 0.34414, 0.71414. */
enum { CR_TO_R = 91881, CB_TO_B = 116130, CB_TO_G = 22554, CR_TO_G = 46802, HALF = 32768 };

static uint8_t clamp(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

static void ycc_pixel(int y, int cb, int cr, uint8_t *rgbx) {
    cb -= 128;
    cr -= 128;
    rgbx[0] = clamp(y + ((CR_TO_R * cr + HALF) >> 16));
    rgbx[1] = clamp(y + ((-CB_TO_G * cb - CR_TO_G * cr + HALF) >> 16));
    rgbx[2] = clamp(y + ((CB_TO_B * cb + HALF) >> 16));
    rgbx[3] = 255;
}

static void across_plain(const uint8_t *in, uint8_t *out, int num) {
    for (int i = 0; i < num; i++) {
        out[2 * i] = (uint8_t)((3 * in[i] + in[i - 1] + 1) >> 2);
        out[2 * i + 1] = (uint8_t)((3 * in[i] + in[i + 1] + 2) >> 2);
    }
}

static void both_plain(const uint8_t *near, const uint8_t *far, uint8_t *out, int num) {
    for (int i = 0; i < num; i++) {
        int left = 3 * near[i - 1] + far[i - 1], right = 3 * near[i + 1] + far[i + 1];
        int here = 3 * (3 * near[i] + far[i]);
        out[2 * i] = (uint8_t)((here + left + 8) >> 4);
        out[2 * i + 1] = (uint8_t)((here + right + 7) >> 4);
    }
}

static void down_plain(const uint8_t *near, const uint8_t *far, uint8_t *out, int num, int bias) {
    for (int i = 0; i < num; i++) out[i] = (uint8_t)((3 * near[i] + far[i] + bias) >> 2);
}

static void ycc_plain(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *rgbx,
                      int width) {
    for (int x = 0; x < width; x++) ycc_pixel(y[x], cb[x], cr[x], rgbx + 4 * x);
}

static void grey_plain(const uint8_t *y, uint8_t *rgbx, int width) {
    for (int x = 0; x < width; x++) ycc_pixel(y[x], 128, 128, rgbx + 4 * x);
}

#ifdef HAS_AVX2
static inline AVX2 __m256i load16(const uint8_t *at) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)at));
}

/* (factor * x + HALF) >> 16 for a factor of 16 bits: floor((floor(2 f x / 2^16) + 1) / 2). */
static inline AVX2 __m256i scale(__m256i x, int factor) {
    __m256i twice = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16((short)factor));
    return _mm256_srai_epi16(_mm256_add_epi16(twice, _mm256_set1_epi16(1)), 1);
}

/* -CR_TO_G is beyond 16 bits: 65536 of it are taken off whole. */
static inline AVX2 __m256i green(__m256i cb, __m256i cr) {
    const __m256i factors =
        _mm256_set1_epi32((int)((uint32_t)(65536 - CR_TO_G) << 16 | (65536 - CB_TO_G)));
    const __m256i half = _mm256_set1_epi32(HALF);
    __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(cb, cr), factors);
    __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(cb, cr), factors);
    low = _mm256_srai_epi32(_mm256_add_epi32(low, half), 16);
    high = _mm256_srai_epi32(_mm256_add_epi32(high, half), 16);
    return _mm256_sub_epi16(_mm256_packs_epi32(low, high), cr);
}

/* Sixteen pixels of each channel, as words, to bytes side by side. */
static inline AVX2 void put16(__m256i r, __m256i g, __m256i b, uint8_t *rgbx) {
    __m256i rb = _mm256_packus_epi16(r, b);
    __m256i gx = _mm256_packus_epi16(g, _mm256_set1_epi16(255));
    __m256i rg = _mm256_unpacklo_epi8(rb, gx), bx = _mm256_unpackhi_epi8(rb, gx);
    __m256i low = _mm256_unpacklo_epi16(rg, bx), high = _mm256_unpackhi_epi16(rg, bx);
    __m256i *out = (__m256i *)(void *)rgbx;
    _mm256_storeu_si256(out, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(low, high, 0x31));
}

static inline AVX2 void ycc16(const uint8_t *y_row, const uint8_t *cb_row, const uint8_t *cr_row,
                              uint8_t *rgbx) {
    const __m256i centre = _mm256_set1_epi16(128);
    __m256i y = load16(y_row), cb = _mm256_sub_epi16(load16(cb_row), centre);
    __m256i cr = _mm256_sub_epi16(load16(cr_row), centre);
    __m256i r = _mm256_add_epi16(cr, scale(cr, CR_TO_R - 65536));
    __m256i b = _mm256_add_epi16(_mm256_add_epi16(cb, cb), scale(cb, CB_TO_B - 131072));
    put16(_mm256_add_epi16(y, r), _mm256_add_epi16(y, green(cb, cr)), _mm256_add_epi16(y, b),
          rgbx);
}

/* The last sixteen are done a second time where they overlap: no pixel beyond is touched. */
static AVX2 void ycc_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *rgbx,
                          int width) {
    for (int x = 0; x < width; x += 16) {
        int at = x + 16 <= width ? x : width - 16;
        ycc16(y + at, cb + at, cr + at, rgbx + 4 * at);
    }
}

static AVX2 void across_avx2(const uint8_t *in, uint8_t *out, int num) {
    const __m256i one = _mm256_set1_epi16(1), two = _mm256_set1_epi16(2);
    for (int i = 0; i < num; i += 16) {
        __m256i near = load16(in + i);
        near = _mm256_add_epi16(near, _mm256_add_epi16(near, near));
        __m256i left = _mm256_add_epi16(_mm256_add_epi16(near, load16(in + i - 1)), one);
        __m256i right = _mm256_add_epi16(_mm256_add_epi16(near, load16(in + i + 1)), two);
        left = _mm256_srli_epi16(left, 2);
        right = _mm256_slli_epi16(_mm256_srli_epi16(right, 2), 8);
        _mm256_storeu_si256((__m256i *)(void *)(out + 2 * i), _mm256_or_si256(left, right));
    }
}

static inline AVX2 __m256i sums(const uint8_t *near, const uint8_t *far) {
    __m256i x = load16(near);
    return _mm256_add_epi16(_mm256_add_epi16(x, _mm256_add_epi16(x, x)), load16(far));
}

static AVX2 void both_avx2(const uint8_t *near, const uint8_t *far, uint8_t *out, int num) {
    const __m256i seven = _mm256_set1_epi16(7), eight = _mm256_set1_epi16(8);
    for (int i = 0; i < num; i += 16) {
        __m256i here = sums(near + i, far + i);
        here = _mm256_add_epi16(here, _mm256_add_epi16(here, here));
        __m256i left = _mm256_add_epi16(here, sums(near + i - 1, far + i - 1));
        __m256i right = _mm256_add_epi16(here, sums(near + i + 1, far + i + 1));
        left = _mm256_srli_epi16(_mm256_add_epi16(left, eight), 4);
        right = _mm256_srli_epi16(_mm256_add_epi16(right, seven), 4);
        right = _mm256_slli_epi16(right, 8);
        _mm256_storeu_si256((__m256i *)(void *)(out + 2 * i), _mm256_or_si256(left, right));
    }
}

static AVX2 void down_avx2(const uint8_t *near, const uint8_t *far, uint8_t *out, int num,
                           int bias) {
    const __m256i round = _mm256_set1_epi16((short)bias);
    for (int i = 0; i < num; i += 16) {
        __m256i sum = _mm256_srli_epi16(_mm256_add_epi16(sums(near + i, far + i), round), 2);
        __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(sum),
                                         _mm256_extracti128_si256(sum, 1));
        _mm_storeu_si128((__m128i *)(void *)(out + i), bytes);
    }
}

static AVX2 void grey_avx2(const uint8_t *y, uint8_t *rgbx, int width) {
    for (int x = 0; x < width; x += 16) {
        int at = x + 16 <= width ? x : width - 16;
        __m256i grey = load16(y + at);
        put16(grey, grey, grey, rgbx + 4 * at);
    }
}
#else
#define across_avx2 across_plain
#define both_avx2 both_plain
#define down_avx2 down_plain
#define ycc_avx2 ycc_plain
#define grey_avx2 grey_plain
#endif

void upsample_across(const uint8_t *in, uint8_t *out, int num, bool vectors) {
    (vectors ? across_avx2 : across_plain)(in, out, num);
}

void upsample_both(const uint8_t *near, const uint8_t *far, uint8_t *out, int num, bool vectors) {
    (vectors ? both_avx2 : both_plain)(near, far, out, num);
}

void upsample_down(const uint8_t *near, const uint8_t *far, uint8_t *out, int num, int bias,
                   bool vectors) {
    (vectors ? down_avx2 : down_plain)(near, far, out, num, bias);
}

void upsample_plain(const uint8_t *in, uint8_t *out, int num, int factor) {
    for (int i = 0; i < num; i++)
        for (int j = 0; j < factor; j++) *out++ = in[i];
}

/* Vectors need a row as long as one of them. */
void color_ycc(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, uint8_t *rgbx, int width,
               bool vectors) {
    (vectors && width >= 16 ? ycc_avx2 : ycc_plain)(y, cb, cr, rgbx, width);
}

void color_grey(const uint8_t *y, uint8_t *rgbx, int width, bool vectors) {
    (vectors && width >= 16 ? grey_avx2 : grey_plain)(y, rgbx, width);
}
