#include "warp.h"

#include <string.h>

/* The four pixels around a place and how far it is from the upper left one's middle. */
typedef struct {
    const uint8_t *upper_left, *upper_right, *lower_left, *lower_right;
    double across, down;
    bool is_last_row;
} Corners;

/* Beyond the edge lies the edge again. Source: bilinear_filter32RGB of Pillow's Geometry.c. */
OPS_BODY Corners find_corners(const Picture *picture, double x, double y) {
    x -= 0.5;
    y -= 0.5;
    int left = x < 0 ? -1 : (int)x, top = y < 0 ? -1 : (int)y;
    int right = left + 1 < picture->width ? left + 1 : left;
    int bottom = top + 1 < picture->height ? top + 1 : top;
    double across = x - left, down = y - top;
    left = left < 0 ? 0 : left;
    top = top < 0 ? 0 : top;
    const uint8_t *upper = picture->now + 3 * (size_t)top * picture->width;
    const uint8_t *lower = picture->now + 3 * (size_t)bottom * picture->width;
    return (Corners){upper + 3 * left, upper + 3 * right, lower + 3 * left, lower + 3 * right,
                     across,           down,              bottom == picture->height - 1};
}

OPS_BODY double between(double from, double to, double share) {
    double part = (to - from) * share;
    return from + part;
}

OPS_BODY void mix_plain(const Corners *at, uint8_t *out) {
    for (int c = 0; c < 3; c++) {
        double above = between(at->upper_left[c], at->upper_right[c], at->across);
        double below = between(at->lower_left[c], at->lower_right[c], at->across);
        out[c] = (uint8_t)between(above, below, at->down);
    }
}

#ifdef HAS_AVX2
AVX2 static inline __m256d load_four(const uint8_t *pixel) {
    int bytes;
    memcpy(&bytes, pixel, 4);
    return _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes)));
}

AVX2 static inline __m256d between_four(__m256d from, __m256d to, double share) {
    __m256d part = _mm256_mul_pd(_mm256_sub_pd(to, from), _mm256_set1_pd(share));
    return _mm256_add_pd(from, part);
}

/* All channels at once; the byte behind a pixel is read too, which only the last row lacks. */
AVX2 static inline void mix_avx2(const Corners *at, uint8_t *out) {
    if (at->is_last_row) {
        mix_plain(at, out);
        return;
    }
    __m256d above =
        between_four(load_four(at->upper_left), load_four(at->upper_right), at->across);
    __m256d below =
        between_four(load_four(at->lower_left), load_four(at->lower_right), at->across);
    __m128i whole = _mm256_cvttpd_epi32(between_four(above, below, at->down));
    const __m128i lowest_bytes = _mm_set1_epi32(0x0c080400);
    int packed = _mm_cvtsi128_si32(_mm_shuffle_epi8(whole, lowest_bytes));
    memcpy(out, &packed, 3);
}
#endif

OPS_BODY void bilinear_plain(const Picture *picture, double x, double y, uint8_t *out) {
    Corners at = find_corners(picture, x, y);
    mix_plain(&at, out);
}

OPS_BODY void nearest_plain(const Picture *picture, double x, double y, uint8_t *out) {
    memcpy(out, picture->now + 3 * ((size_t)(int)y * picture->width + (int)x), 3);
}

/* Source: ImagingGenericTransform and affine_transform there. The copies stay in registers, as no
 * byte written can change them. */
#define WARP_ROW(name, take)                                                                       \
    static void name(const Picture *whole, const Matrix *matrix, int row, uint8_t *out,            \
                     uint8_t fill) {                                                               \
        const Picture picture = *whole;                                                            \
        const Matrix m = *matrix;                                                                  \
        const double x_row = m.b * (row + 0.5), y_row = m.e * (row + 0.5);                         \
        for (int column = 0; column < picture.width; column++, out += 3) {                         \
            double x = m.a * (column + 0.5) + x_row + m.c;                                         \
            double y = m.d * (column + 0.5) + y_row + m.f;                                         \
            if (x >= 0 && x < picture.width && y >= 0 && y < picture.height)                       \
                take(&picture, x, y, out);                                                         \
            else                                                                                   \
                memset(out, fill, 3);                                                              \
        }                                                                                          \
    }

WARP_ROW(nearest_row, nearest_plain)
WARP_ROW(bilinear_row, bilinear_plain)

#ifdef HAS_AVX2
AVX2 static inline void bilinear_avx2(const Picture *picture, double x, double y,
                                          uint8_t *out) {
    Corners at = find_corners(picture, x, y);
    mix_avx2(&at, out);
}

AVX2 WARP_ROW(bilinear_row_avx2, bilinear_avx2)
#else
#define bilinear_row_avx2 bilinear_row
#endif

void warp_exact(Picture *picture, const Matrix *m, bool bilinear, uint8_t fill) {
    size_t bytes = 3 * (size_t)picture->width;
    for (int row = 0; row < picture->height; row++) {
        uint8_t *out = picture->other + bytes * (size_t)row;
        if (!bilinear)
            nearest_row(picture, m, row, out, fill);
        else if (picture->vectors)
            bilinear_row_avx2(picture, m, row, out, fill);
        else
            bilinear_row(picture, m, row, out, fill);
    }
    picture_swap(picture);
}
