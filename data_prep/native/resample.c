#include "resample.h"

#include <stdlib.h>
#include <string.h>

#include "../../pipeline/data/native/taps.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_AVX2_PATH 1
#endif

#define BITS TAPS_BITS
#define HALF (1 << (BITS - 1))

/* For each output pixel its first input pixel, and `taps` weights (an even number; some are zero).
 * All taps lie inside the input where it has so many pixels. */
typedef struct {
    int taps;
    int *first;
    int32_t *weights;
} Kernel;

static void kernel_free(Kernel *kernel) {
    free(kernel->first);
    free(kernel->weights);
}

/* The weights are those of training's resize, laid out for rows of packed pixels. */
static int kernel_make(Kernel *kernel, int in, int out) {
    Taps taps;
    int status = taps_make(&taps, in, out, TAPS_BILINEAR, false);
    int most = 1;
    for (int x = 0; status == 0 && x < out; x++) most = most < taps.count[x] ? taps.count[x] : most;
    kernel->taps = (most + 1) & ~1;
    kernel->first = malloc(sizeof(int) * out);
    kernel->weights = calloc((size_t)out * kernel->taps, sizeof(int32_t));
    if (kernel->first == NULL || kernel->weights == NULL) status = -1;
    for (int x = 0; status == 0 && x < out; x++) {
        int low = taps.first[x], first = low + kernel->taps > in ? in - kernel->taps : low;
        kernel->first[x] = first = first < 0 ? 0 : first;
        int32_t *weights = kernel->weights + (size_t)x * kernel->taps + (low - first);
        for (int i = 0; i < taps.count[x]; i++) weights[i] = taps_weight(&taps, x, i);
    }
    taps_free(&taps);
    return status;
}

static inline uint8_t to_byte(int32_t sum) {
    int32_t value = sum >> BITS;
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

static void row_plain(const uint8_t *in, uint8_t *out, const Kernel *kernel, int out_w, int step,
                      int in_w) {
    for (int x = 0; x < out_w; x++) {
        const int32_t *weights = kernel->weights + (size_t)x * kernel->taps;
        int first = kernel->first[x], taps = kernel->taps;
        if (first + taps > in_w) taps = in_w - first;
        for (int c = 0; c < step; c++) {
            int32_t sum = HALF;
            for (int i = 0; i < taps; i++) sum += in[(first + i) * step + c] * weights[i];
            out[x * step + c] = to_byte(sum);
        }
    }
}

#ifdef HAVE_AVX2_PATH
/* Two pixels of three channels at once: bytes 0-2 and 3-5, each channel in a lane of its own. */
__attribute__((target("avx2"))) static void row_avx2(const uint8_t *in, uint8_t *out,
                                                     const Kernel *kernel, int out_w) {
    const __m256i pair = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m256i half = _mm256_setr_epi32(HALF, HALF, HALF, HALF, 0, 0, 0, 0);
    const __m128i spread = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const int taps = kernel->taps;
    const int32_t *weights = kernel->weights;
    for (int x = 0; x < out_w; x++, weights += taps) {
        const uint8_t *from = in + 3 * (size_t)kernel->first[x];
        __m256i sum = half;
        for (int i = 0; i < taps; i += 2) {
            __m128i two = _mm_loadl_epi64((const __m128i *)(weights + i));
            __m128i raw = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)(from + 3 * i)), spread);
            __m256i weight = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(two), pair);
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(raw), weight));
        }
        __m128i both =
            _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        both = _mm_packs_epi32(_mm_srai_epi32(both, BITS), both);
        int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(both, both));
        memcpy(out + 3 * (size_t)x, &bytes, 4);
    }
}
#endif

#ifdef HAVE_AVX2_PATH
__attribute__((target_clones("avx2", "default")))
#endif
static void column(const uint8_t *rows, size_t stride, uint8_t *out, const int32_t *weights,
                   int taps, int32_t *sums) {
    for (size_t x = 0; x < stride; x++) sums[x] = HALF;
    for (int i = 0; i < taps; i++) {
        const uint8_t *row = rows + i * stride;
        const int32_t weight = weights[i];
        if (weight == 0) continue;
        for (size_t x = 0; x < stride; x++) sums[x] += row[x] * weight;
    }
    for (size_t x = 0; x < stride; x++) out[x] = to_byte(sums[x]);
}

static void rows(const uint8_t *in, int in_w, int in_h, uint8_t *out, int out_w, int channels,
                 const Kernel *kernel) {
    for (int y = 0; y < in_h; y++) {
        const uint8_t *from = in + (size_t)y * in_w * channels;
        uint8_t *to = out + (size_t)y * out_w * channels;
#ifdef HAVE_AVX2_PATH
        if (channels == 3 && in_w >= kernel->taps && __builtin_cpu_supports("avx2")) {
            row_avx2(from, to, kernel, out_w);
            continue;
        }
#endif
        row_plain(from, to, kernel, out_w, channels, in_w);
    }
}

int resample(const uint8_t *in, int in_w, int in_h, uint8_t *out, int out_w, int out_h,
             int channels) {
    Kernel across = {0}, down = {0};
    size_t stride = (size_t)out_w * channels;
    uint8_t *middle = malloc(stride * in_h + RESAMPLE_SLACK);
    int32_t *sums = malloc(sizeof(int32_t) * stride);
    int status = -1;
    if (middle != NULL && sums != NULL && kernel_make(&across, in_w, out_w) == 0 &&
        kernel_make(&down, in_h, out_h) == 0) {
        rows(in, in_w, in_h, middle, out_w, channels, &across);
        for (int y = 0; y < out_h; y++)
            column(middle + (size_t)down.first[y] * stride, stride, out + (size_t)y * stride,
                   down.weights + (size_t)y * down.taps, down.taps, sums);
        status = 0;
    }
    kernel_free(&across);
    kernel_free(&down);
    free(middle);
    free(sums);
    return status;
}
