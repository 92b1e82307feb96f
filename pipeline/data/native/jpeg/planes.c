/* Which blocks a crop needs, where their samples lie, and which of them make a pixel. */
#include "planes.h"

#include <string.h>

#include "color.h"
#include "idct.h"

#define ALIGN 32

static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* When libjpeg-turbo smooths: doubling across (unless a row is two samples or less), doubling
 * down, or both; every other factor repeats samples. */
static void choose_upsampling(Plane *plane) {
    int is_wide = plane->width > 2;
    plane->is_smooth_across = plane->across == 2 && plane->down <= 2 && is_wide;
    plane->is_smooth_down = plane->down == 2 && (plane->across == 1 || plane->is_smooth_across);
}

/* The blocks under the crop and, where upsampling smooths, under the samples around it. */
static void choose_blocks(Plane *plane, Box box) {
    int across = plane->is_smooth_across, down = plane->is_smooth_down;
    plane->x0 = max(0, box.left / plane->across - across) / 8;
    plane->y0 = max(0, box.top / plane->down - down) / 8;
    int right = min(plane->width, ceil_div(box.right, plane->across) + across);
    int bottom = min(plane->height, ceil_div(box.bottom, plane->down) + down);
    plane->x1 = ceil_div(right, 8);
    plane->y1 = ceil_div(bottom, 8);
}

static void open_plane(Plane *plane, const JpegHeader *header, int index, Box box) {
    const Component *component = &header->components[index];
    const uint16_t *quant = header->quant[component->quant];
    plane->h = component->h;
    plane->v = component->v;
    plane->across = header->max_h / plane->h;
    plane->down = header->max_v / plane->v;
    plane->width = ceil_div(header->width, plane->across);
    plane->height = ceil_div(header->height, plane->down);
    for (int i = 0; i < 64; i++) plane->quant[idct_order[i]] = (int16_t)quant[i];
    choose_upsampling(plane);
    choose_blocks(plane, box);
}

void planes_open(Planes *planes, const JpegHeader *header, Box box, bool vectors) {
    planes->num = header->num_components;
    planes->box = box;
    planes->vectors = vectors;
    planes->mcu_width = 8 * header->max_h;
    planes->mcu_height = 8 * header->max_v;
    planes->num_across = ceil_div(header->width, planes->mcu_width);
    planes->num_down = ceil_div(header->height, planes->mcu_height);
    planes->x0 = planes->num_across;
    planes->y0 = planes->num_down;
    planes->x1 = planes->y1 = 0;
    for (int i = 0; i < planes->num; i++) {
        Plane *plane = &planes->planes[i];
        open_plane(plane, header, i, box);
        planes->x0 = min(planes->x0, plane->x0 / plane->h);
        planes->x1 = max(planes->x1, ceil_div(plane->x1, plane->h));
        planes->y0 = min(planes->y0, plane->y0 / plane->v);
        planes->y1 = max(planes->y1, ceil_div(plane->y1, plane->v));
    }
}

static size_t row_bytes(const Plane *plane) {
    return (size_t)(plane->x1 - plane->x0) * 8 + 2 * COLOR_SLACK;
}

static size_t upsampled_bytes(const Planes *planes) {
    size_t width = (size_t)(planes->box.right - planes->box.left);
    return (width + 4 * COLOR_SLACK + ALIGN - 1) / ALIGN * ALIGN;
}

size_t planes_bytes(const Planes *planes) {
    size_t total = 0;
    for (int i = 0; i < planes->num; i++) {
        const Plane *plane = &planes->planes[i];
        size_t rows = 8 * (size_t)plane->v + 1;
        total += (row_bytes(plane) * rows + ALIGN) / ALIGN * ALIGN + upsampled_bytes(planes);
    }
    return total;
}

void planes_place(Planes *planes, uint8_t *room) {
    for (int i = 0; i < planes->num; i++) {
        Plane *plane = &planes->planes[i];
        plane->stride = row_bytes(plane);
        plane->samples = room + plane->stride + COLOR_SLACK;
        room += (plane->stride * (8 * (size_t)plane->v + 1) + ALIGN) / ALIGN * ALIGN;
        plane->upsampled = room;
        room += upsampled_bytes(planes);
    }
}

int planes_ready(const Planes *planes, int row) {
    int end = (row + 1) * planes->mcu_height, waits = 0;
    for (int i = 0; i < planes->num; i++) waits |= planes->planes[i].is_smooth_down;
    if (waits && row + 1 < planes->num_down) end--; /* the last one mixes with the row below */
    return min(end, planes->box.bottom);
}

void planes_close_edges(Planes *planes) {
    for (int i = 0; i < planes->num; i++) {
        Plane *plane = &planes->planes[i];
        if (!plane->is_smooth_across) continue;
        int end = min(plane->width, plane->x1 * 8) - plane->x0 * 8;
        for (int y = 0; y < 8 * plane->v; y++) {
            uint8_t *row = plane->samples + plane->stride * (size_t)y;
            row[-1] = row[0];
            row[end] = row[end - 1];
        }
    }
}

static const uint8_t *sample_row(const Plane *plane, int row, int y) {
    y = min(max(y, 0), plane->height - 1) - row * 8 * plane->v;
    return plane->samples + (ptrdiff_t)plane->stride * y;
}

/* Samples for the pixels of row y from box.left on. */
static const uint8_t *pixel_row(const Planes *planes, const Plane *plane, int row, int y) {
    int left = planes->box.left, first = left / plane->across;
    int num = ceil_div(planes->box.right, plane->across) - first;
    int near_y = y / plane->down, at = first - plane->x0 * 8;
    int far_y = y % 2 ? near_y + 1 : near_y - 1;
    const uint8_t *near = sample_row(plane, row, near_y) + at, *far = near;
    if (plane->is_smooth_down) far = sample_row(plane, row, far_y) + at;
    if (plane->across == 1 && plane->down == 1) return near;
    if (plane->is_smooth_across && plane->is_smooth_down)
        upsample_both(near, far, plane->upsampled, num, planes->vectors);
    else if (plane->is_smooth_across)
        upsample_across(near, plane->upsampled, num, planes->vectors);
    else if (plane->is_smooth_down)
        upsample_down(near, far, plane->upsampled, num, 1 + y % 2, planes->vectors);
    else
        upsample_plain(near, plane->upsampled, num, plane->across);
    return plane->upsampled + (left - first * plane->across);
}

void planes_pixels(const Planes *planes, int row, int y, uint8_t *rgbx) {
    const uint8_t *rows[3];
    int width = planes->box.right - planes->box.left;
    for (int i = 0; i < planes->num; i++) rows[i] = pixel_row(planes, planes->planes + i, row, y);
    if (planes->num == 1)
        color_grey(rows[0], rgbx, width, planes->vectors);
    else
        color_ycc(rows[0], rows[1], rows[2], rgbx, width, planes->vectors);
}

void planes_advance(Planes *planes) {
    for (int i = 0; i < planes->num; i++) {
        Plane *plane = &planes->planes[i];
        uint8_t *start = plane->samples - COLOR_SLACK;
        memcpy(start - plane->stride, start + plane->stride * (8 * (size_t)plane->v - 1),
               plane->stride);
    }
}
