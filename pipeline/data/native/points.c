#include "points.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The input pixel left of (or above) output `x`, which may be -1, and the part of the next one. */
static int left_of(int x, int in, int out, double *part) {
    double centre = (double)in / out * (x + 0.5) - 0.5;
    int left = (int)floor(centre);
    *part = centre - left;
    return left;
}

static int clip(int x, int size) { return x < 0 ? 0 : x < size ? x : size - 1; }

int points_begin(Points *points, int in_width, int in_height, int out_width, int out_height,
                 bool flip, uint8_t *out) {
    memset(points, 0, sizeof *points);
    points->in_width = in_width, points->in_height = in_height;
    points->out_width = out_width, points->out_height = out_height;
    points->flip = flip;
    points->out = out;
    points->parts = calloc(7 * (size_t)out_width, sizeof(double));
    points->places = calloc(2 * (size_t)out_width, sizeof(int));
    if (points->parts == NULL || points->places == NULL) return -1;
    points->upper = points->parts + out_width;
    points->lower = points->upper + 3 * (size_t)out_width;
    for (int x = 0; x < out_width; x++) {
        int at = flip ? out_width - 1 - x : x;
        int left = left_of(x, in_width, out_width, points->parts + at);
        points->places[2 * at] = 4 * clip(left, in_width);
        points->places[2 * at + 1] = 4 * clip(left + 1, in_width);
    }
    return 0;
}

static void across(const Points *points, const uint8_t *rgbx, double *line) {
    for (int x = 0; x < points->out_width; x++, line += 3) {
        const uint8_t *left = rgbx + points->places[2 * x];
        const uint8_t *right = rgbx + points->places[2 * x + 1];
        for (int c = 0; c < 3; c++)
            line[c] = left[c] + (right[c] - left[c]) * points->parts[x];
    }
}

static void write_row(const Points *points, const double *upper, double part) {
    size_t count = 3 * (size_t)points->out_width;
    const double *lower = points->lower;
    uint8_t *out = points->out + count * points->next_out;
    for (size_t i = 0; i < count; i++)
        out[i] = (uint8_t)(int)(upper[i] + (lower[i] - upper[i]) * part);
}

void points_row(Points *points, const uint8_t *rgbx) {
    int row = points->next_in++;
    bool is_here = false; /* whether `lower` holds this row; the one before is then in `upper` */
    while (points->next_out < points->out_height) {
        double part;
        int above = left_of(points->next_out, points->in_height, points->out_height, &part);
        int first = clip(above, points->in_height), last = clip(above + 1, points->in_height);
        if (row < first) return;
        if (!is_here) {
            double *line = points->upper;
            points->upper = points->lower;
            points->lower = line;
            across(points, rgbx, points->lower);
            is_here = true;
        }
        if (row < last) return;
        write_row(points, first == last ? points->lower : points->upper, part);
        points->next_out++;
    }
}

void points_end(Points *points) {
    free(points->parts);
    free(points->places);
}
