#include "taps.h"

#include <math.h>
#include <stdlib.h>

static double triangle(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

/* Where the inputs of one output lie and how far its filter reaches, in input px. */
typedef struct {
    double centre, stretch;
    int low, high;
} Reach;

static Reach reach(int x, int in, int out, int filter) {
    double scale = (double)in / out, stretch = scale < 1.0 ? 1.0 : scale;
    double support = (filter == TAPS_BICUBIC ? 2.0 : 1.0) * stretch;
    Reach r = {(x + 0.5) * scale, stretch, 0, in};
    double low = r.centre - support + 0.5, high = r.centre + support + 0.5;
    if (low > 0) r.low = (int)low;
    if (high < in) r.high = (int)high;
    return r;
}

static int32_t fixed(double weight) {
    weight *= 1 << TAPS_BITS;
    return (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
}

/* Fill shares[0 .. high - low) with 22-bit weights that sum to about one. */
static void weigh(const Reach *r, int filter, double *shares, int32_t *weights) {
    double sum = 0.0, shrink = 1.0 / r->stretch;
    int count = r->high - r->low;
    for (int i = 0; i < count; i++) {
        double x = (i + r->low - r->centre + 0.5) * shrink;
        sum += shares[i] = filter == TAPS_BICUBIC ? cubic(x) : triangle(x);
    }
    for (int i = 0; i < count; i++) weights[i] = fixed(sum != 0.0 ? shares[i] / sum : shares[i]);
}

/* Store the weights of output `x` without the zeros at both ends. */
static void store(Taps *taps, int x, int low, int count, const int32_t *weights) {
    while (count > 1 && weights[count - 1] == 0) count--;
    while (count > 1 && weights[0] == 0) weights++, low++, count--;
    if (count > taps->groups * TAPS_GROUP) count = taps->groups * TAPS_GROUP; /* never happens */
    for (int i = 0; i < count; i++) {
        int16_t *high = taps_group(taps, x, i) + i % TAPS_GROUP;
        high[0] = (int16_t)(weights[i] >> TAPS_LOW_BITS);
        high[TAPS_GROUP] = (int16_t)(weights[i] & ((1 << TAPS_LOW_BITS) - 1));
    }
    taps->first[x] = low;
    taps->count[x] = count;
}

int taps_make(Taps *taps, int in, int out, int filter, bool flip) {
    double support = (filter == TAPS_BICUBIC ? 2.0 : 1.0) * (in > out ? (double)in / out : 1.0);
    int most = (int)ceil(support) * 2 + 1, stored = (int)ceil(2 * support);
    if (most > in) most = in;
    if (stored > in) stored = in;
    size_t pairs = ((size_t)out + 1) / 2;
    taps->out = out;
    taps->groups = (stored + TAPS_GROUP - 1) / TAPS_GROUP;
    taps->first = calloc(4 * pairs, sizeof(int));
    taps->count = taps->first == NULL ? NULL : taps->first + 2 * pairs;
    taps->weights = calloc(pairs * taps->groups, sizeof(int16_t) * TAPS_PAIR);
    double *shares = malloc((sizeof(double) + sizeof(int32_t)) * (size_t)most);
    int status = taps->first == NULL || taps->weights == NULL || shares == NULL ? -1 : 0;
    for (int x = 0; x < out && status == 0; x++) {
        int32_t *weights = (int32_t *)(shares + most);
        Reach r = reach(x, in, out, filter);
        weigh(&r, filter, shares, weights);
        store(taps, flip ? out - 1 - x : x, r.low, r.high - r.low, weights);
    }
    free(shares);
    return status;
}

void taps_free(Taps *taps) {
    free(taps->first);
    free(taps->weights);
}

int taps_span(const Taps *taps) {
    int span = 1, end = 0;
    for (int x = 0; x < taps->out; x++) {
        int last = taps->first[x] + taps->count[x];
        end = last > end ? last : end;
        if (end - taps->first[x] > span) span = end - taps->first[x];
    }
    return span;
}
