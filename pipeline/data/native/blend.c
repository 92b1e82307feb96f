#include <string.h>

#include "ops.h"

enum { STRIP = 768 }; /* pixels at a time: what lies between stays in the nearest cache */

/* A factor whose products an int holds; from there on every difference is clipped anyway. */
static float limited(double factor) {
    const double most = 1 << 22;
    return (float)(factor > most ? most : factor < -most ? -most : factor);
}

/* out = zero + factor (one - zero), truncated and clipped. Source: ImagingBlend of Pillow. */
static void blend_plain(uint8_t *out, const uint8_t *zero, const uint8_t *one, size_t bytes,
                        float factor) {
    for (size_t i = 0; i < bytes; i++) {
        float product = factor * (float)(one[i] - zero[i]);
        int sum = (int)((float)zero[i] + product);
        out[i] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
}

#ifdef HAS_AVX2
AVX2 static inline __m256i blend_eight(const uint8_t *zero, const uint8_t *one, __m256 factor) {
    __m256i from = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)zero));
    __m256i to = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)one));
    __m256 product = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_sub_epi32(to, from)));
    return _mm256_cvttps_epi32(_mm256_add_ps(_mm256_cvtepi32_ps(from), product));
}

/* Two packings clip at 0 and 255 on their way. */
AVX2 static void blend_avx2(uint8_t *out, const uint8_t *zero, const uint8_t *one, size_t bytes,
                                float factor) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256 factors = _mm256_set1_ps(factor);
    size_t i = 0;
    for (; i + 32 <= bytes; i += 32) {
        __m256i a = blend_eight(zero + i, one + i, factors);
        __m256i b = blend_eight(zero + i + 8, one + i + 8, factors);
        __m256i c = blend_eight(zero + i + 16, one + i + 16, factors);
        __m256i d = blend_eight(zero + i + 24, one + i + 24, factors);
        __m256i all = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_permutevar8x32_epi32(all, order));
    }
    blend_plain(out + i, zero + i, one + i, bytes - i, factor);
}
#else
#define blend_avx2 blend_plain
#endif

/* Blend all with one value. */
static void blend_with(Picture *picture, uint8_t value, double factor) {
    uint8_t zero[3 * STRIP];
    size_t all = picture_bytes(picture);
    memset(zero, value, sizeof zero);
    for (size_t done = 0; done < all; done += sizeof zero) {
        size_t bytes = all - done < sizeof zero ? all - done : sizeof zero;
        uint8_t *at = picture->now + done;
        OPS_CHOOSE(blend, picture->vectors)(at, zero, at, bytes, limited(factor));
    }
}

void blend_brightness(Picture *picture, double factor) { blend_with(picture, 0, factor); }

/* Source: rgb2l of Pillow (ITU-R 601-2 in 16 bits). */
OPS_BODY void grey_body(const uint8_t *pixels, size_t count, uint8_t *grey) {
    for (size_t i = 0; i < count; i++) {
        uint32_t sum = pixels[3 * i] * 19595u + pixels[3 * i + 1] * 38470u;
        grey[i] = (uint8_t)((sum + pixels[3 * i + 2] * 7471u + 0x8000u) >> 16);
    }
}

OPS_BODY void total_body(const uint8_t *bytes, size_t count, uint64_t *total) {
    uint32_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += bytes[i];
    *total += sum;
}

OPS_BODY void spread_body(const uint8_t *grey, size_t count, uint8_t *pixels) {
    for (size_t i = 0; i < count; i++)
        for (int c = 0; c < 3; c++) pixels[3 * i + c] = grey[i];
}

OPS_TWICE(grey, (const uint8_t *pixels, size_t count, uint8_t *grey), (pixels, count, grey))
OPS_TWICE(total, (const uint8_t *bytes, size_t count, uint64_t *sum), (bytes, count, sum))
OPS_TWICE(spread, (const uint8_t *grey, size_t count, uint8_t *pixels), (grey, count, pixels))

void blend_contrast(Picture *picture, double factor) {
    uint8_t grey[STRIP];
    uint64_t sum = 0, count = picture_bytes(picture) / 3;
    for (size_t done = 0; done < count; done += STRIP) {
        size_t strip = count - done < STRIP ? count - done : STRIP;
        OPS_CHOOSE(grey, picture->vectors)(picture->now + 3 * done, strip, grey);
        OPS_CHOOSE(total, picture->vectors)(grey, strip, &sum);
    }
    blend_with(picture, (uint8_t)((2 * sum + count) / (2 * count)), factor);
}

void blend_color(Picture *picture, double factor) {
    uint8_t grey[STRIP], zero[3 * STRIP];
    size_t count = picture_bytes(picture) / 3;
    for (size_t done = 0; done < count; done += STRIP) {
        size_t strip = count - done < STRIP ? count - done : STRIP;
        uint8_t *at = picture->now + 3 * done;
        OPS_CHOOSE(grey, picture->vectors)(at, strip, grey);
        OPS_CHOOSE(spread, picture->vectors)(grey, strip, zero);
        OPS_CHOOSE(blend, picture->vectors)(at, zero, at, 3 * strip, limited(factor));
    }
}

/* Smooth the inner bytes of a row by Pillow's SMOOTH (1 1 1, 1 5 1, 1 1 1, by 13). The nearest
 * whole number is floor((sum + 6) / 13), as no sum of bytes by 13 is a tie. */
OPS_BODY void smooth_body(const uint8_t *above, const uint8_t *row, const uint8_t *below,
                          uint8_t *out, size_t bytes) {
    uint16_t columns[3 * STRIP + 6];
    for (size_t i = 0; i < bytes + 6; i++) columns[i] = (uint16_t)(above[i] + row[i] + below[i]);
    for (size_t i = 0; i < bytes; i++) {
        uint16_t sum = (uint16_t)(columns[i] + columns[i + 3] + columns[i + 6] + 4 * row[i + 3]);
        out[i] = (uint8_t)((sum + 6u) * 5042u >> 16); /* by 13, exact up to 6,553 */
    }
}

OPS_TWICE(smooth,
          (const uint8_t *above, const uint8_t *row, const uint8_t *below, uint8_t *out,
           size_t bytes),
          (above, row, below, out, bytes))

static void sharpen_row(const Picture *picture, size_t at, float factor) {
    size_t bytes = 3 * (size_t)picture->width, inner = bytes - 6;
    const uint8_t *row = picture->now + at;
    uint8_t *out = picture->other + at, smooth[3 * STRIP];
    memcpy(out, row, 3);
    for (size_t done = 0; done < inner; done += sizeof smooth) {
        size_t strip = inner - done < sizeof smooth ? inner - done : sizeof smooth;
        OPS_CHOOSE(smooth, picture->vectors)
        (row + done - bytes, row + done, row + done + bytes, smooth, strip);
        OPS_CHOOSE(blend, picture->vectors)
        (out + 3 + done, smooth, row + 3 + done, strip, factor);
    }
    memcpy(out + 3 + inner, row + 3 + inner, 3);
}

void blend_sharpness(Picture *picture, double factor) {
    size_t bytes = 3 * (size_t)picture->width, all = picture_bytes(picture);
    if (picture->width < 3 || picture->height < 3) return;
    memcpy(picture->other, picture->now, bytes);
    for (size_t at = bytes; at < all - bytes; at += bytes)
        sharpen_row(picture, at, limited(factor));
    memcpy(picture->other + all - bytes, picture->now + all - bytes, bytes);
    picture_swap(picture);
}
