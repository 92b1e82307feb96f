/* Where instructions of newer x86-64 processors may be compiled (AVX2, and the shifts of BMI2,
 * which came with it), and whether this processor has them. Everything has a portable twin with the
 * same bytes; -DNO_VECTORS compiles that alone.
 */
#ifndef VECTORS_H
#define VECTORS_H

#include <stdbool.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(NO_VECTORS)
#include <immintrin.h>
#define HAS_AVX2
#define AVX2 __attribute__((target("avx2,bmi,bmi2")))
static inline bool has_vectors(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}
#else
#define AVX2
static inline bool has_vectors(void) { return false; }
#endif

#endif
