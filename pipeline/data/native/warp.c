#include <math.h>
#include <string.h>

#include "ops.h"
#include "warp.h"

#define ONE 65536
#define PI 3.14159265358979323846

/* A Matrix in 16.16 fixed point, for the middles of pixels. */
typedef struct {
    int64_t a, b, c, d, e, f;
} Fixed;

static int64_t floor_div(int64_t number, int64_t by) {
    return number >= 0 ? number / by : -((-number + by - 1) / by);
}

static int64_t ceil_div(int64_t number, int64_t by) { return -floor_div(-number, by); }

/* Narrow [*low, *high) to the x for which 0 <= start + step x < limit. */
static void narrow(int64_t start, int64_t step, int64_t limit, int64_t *low, int64_t *high) {
    int64_t from = *low, to = *high;
    if (step > 0) {
        from = ceil_div(-start, step);
        to = ceil_div(limit - start, step);
    } else if (step < 0) {
        from = floor_div(start - limit, -step) + 1;
        to = floor_div(start, -step) + 1;
    } else if (start < 0 || start >= limit) {
        to = from;
    }
    *low = from > *low ? from : *low;
    *high = to < *high ? to : *high;
    if (*low >= *high) *low = *high = 0;
}

/* Fill [low, high) of a row whose source starts at (x, y). Four bytes at a time are quicker than
 * three, and the next pixel puts the fourth right, but behind the last one there is none. */
static void gather(const Picture *picture, uint8_t *out, const Fixed *m, int64_t x, int64_t y,
                   int64_t low, int64_t high) {
    const int64_t a = m->a, d = m->d, width = picture->width, end = high - 1;
    const int64_t last = (picture->height - 1) * (int64_t)ONE;
    const uint8_t *from = picture->now;
    int64_t fast = y + d * low >= last || y + d * end >= last ? low : end;
    x += a * low;
    y += d * low;
    for (; low < fast; low++, x += a, y += d)
        memcpy(out + 3 * low, from + 3 * ((y >> 16) * width + (x >> 16)), 4);
    for (; low < high; low++, x += a, y += d)
        memcpy(out + 3 * low, from + 3 * ((y >> 16) * width + (x >> 16)), 3);
}

/* Source: affine_fixed of Pillow's Geometry.c. */
static void warp_fixed(Picture *picture, const Fixed *m, uint8_t fill) {
    int64_t width = picture->width, height = picture->height;
    for (int64_t row = 0; row < height; row++) {
        uint8_t *out = picture->other + 3 * row * width;
        int64_t x = m->b * row + m->c, y = m->e * row + m->f, low = 0, high = width;
        narrow(x, m->a, width * ONE, &low, &high);
        narrow(y, m->d, height * ONE, &low, &high);
        memset(out, fill, 3 * (size_t)low);
        if (m->a == ONE && m->d == 0)
            memcpy(out + 3 * low, picture->now + 3 * ((y >> 16) * width + (x >> 16) + low),
                   3 * (size_t)(high - low));
        else
            gather(picture, out, m, x, y, low, high);
        memset(out + 3 * high, fill, 3 * (size_t)(width - high));
    }
    picture_swap(picture);
}

/* Move the columns [left, right) up by `shift`. */
static void lift(const Picture *picture, int64_t left, int64_t right, int64_t shift, uint8_t fill) {
    size_t bytes = 3 * (size_t)(right - left);
    for (int64_t row = 0; row < picture->height; row++) {
        int64_t from = row + shift;
        uint8_t *out = picture->other + 3 * (row * picture->width + left);
        if (from < 0 || from >= picture->height)
            memset(out, fill, bytes);
        else
            memcpy(out, picture->now + 3 * (from * picture->width + left), bytes);
    }
}

/* Where only y depends on x, columns move whole, and neighbours often by the same. */
static void warp_columns(Picture *picture, const Fixed *m, uint8_t fill) {
    for (int64_t left = 0, right; left < picture->width; left = right) {
        int64_t shift = (m->d * left + m->f) >> 16;
        right = left + 1;
        while (right < picture->width && (m->d * right + m->f) >> 16 == shift) right++;
        lift(picture, left, right, shift, fill);
    }
    picture_swap(picture);
}

static int64_t fixed(double number) { return (int64_t)floor(number * ONE + 0.5); }

/* Pillow takes fixed point where it is enough for all four corners. */
static bool is_near(const Matrix *m, double x, double y) {
    return fabs(m->a * x + m->b * y + m->c) < 32768 && fabs(m->d * x + m->e * y + m->f) < 32768;
}

static void warp(Picture *picture, const Matrix *m, WarpFilter filter, uint8_t fill) {
    double width = picture->width, height = picture->height;
    if (filter == WARP_BILINEAR || !is_near(m, 0, 0) || !is_near(m, width, height) ||
        !is_near(m, 0, height) || !is_near(m, width, 0)) {
        warp_exact(picture, m, filter == WARP_BILINEAR, fill);
        return;
    }
    Fixed steps = {fixed(m->a), fixed(m->b), fixed(m->c + m->a * 0.5 + m->b * 0.5),
                   fixed(m->d), fixed(m->e), fixed(m->f + m->d * 0.5 + m->e * 0.5)};
    bool is_columns = steps.a == ONE && steps.b == 0 && steps.c == ONE / 2 && steps.e == ONE;
    (is_columns ? warp_columns : warp_fixed)(picture, &steps, fill);
}

/* Python's round(number, 15), which Pillow's rotate applies; `rest` is what the product lost. */
static double round_15(double number) {
    double product = number * 1e15, whole = rint(product);
    double rest = fma(number, 1e15, -product) + (product - whole);
    return (whole + (rest > 0.5) - (rest < -0.5)) / 1e15;
}

void warp_rotate(Picture *picture, double degrees, WarpFilter filter, uint8_t fill) {
    int64_t across = (picture->width - 1) * ONE, down = (picture->height - 1) * ONE;
    double turn = fmod(degrees, 360), x = picture->width / 2.0, y = picture->height / 2.0;
    if (turn < 0) turn += 360;
    if (turn == 0 || turn == 360) return;
    if (turn == 180) {
        warp_fixed(picture, &(Fixed){-ONE, 0, across, 0, -ONE, down}, fill);
    } else if (turn == 90 && across == down) {
        warp_fixed(picture, &(Fixed){0, -ONE, across, ONE, 0, 0}, fill);
    } else if (turn == 270 && across == down) {
        warp_fixed(picture, &(Fixed){0, ONE, 0, -ONE, 0, down}, fill);
    } else {
        double angle = -(turn * (PI / 180));
        double cosine = round_15(cos(angle)), sine = round_15(sin(angle));
        Matrix m = {cosine, sine, cosine * -x + sine * -y + x,
                    -sine, cosine, -sine * -x + cosine * -y + y};
        warp(picture, &m, filter, fill);
    }
}

void warp_shear(Picture *picture, double x, double y, WarpFilter filter, uint8_t fill) {
    warp(picture, &(Matrix){1, x, 0, y, 1, 0}, filter, fill);
}

static int64_t whole(double shift, int size) {
    double moved = floor(shift + 0.5);
    return moved > size ? size : moved < -size ? -size : (int64_t)moved;
}

/* Source: ImagingScaleAffine there. Rows move in place, in the order that spares their sources. */
void warp_translate(Picture *picture, double x, double y, uint8_t fill) {
    int64_t width = picture->width, height = picture->height;
    int64_t right = whole(x, picture->width), down = whole(y, picture->height);
    int64_t low = right < 0 ? -right : 0, high = right > 0 ? width - right : width;
    for (int64_t i = 0; i < height; i++) {
        int64_t row = down < 0 ? height - 1 - i : i, from = row + down;
        uint8_t *out = picture->now + 3 * row * width;
        if (from < 0 || from >= height) {
            memset(out, fill, 3 * (size_t)width);
            continue;
        }
        memmove(out + 3 * low, picture->now + 3 * (from * width + low + right),
                3 * (size_t)(high - low));
        memset(out, fill, 3 * (size_t)low);
        memset(out + 3 * high, fill, 3 * (size_t)(width - high));
    }
}
