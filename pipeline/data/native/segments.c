#include "segments.h"

#include <stdlib.h>
#include <string.h>

#define WORTH_IT_PERCENT 80 /* a cut that keeps more of the segments gains less than it costs */
#define END_BYTES 2

/* The segments of an image, and those that are wanted: columns and rows, ends excluded. */
typedef struct {
    int across, down;
    int left, top, right, bottom;
} Grid;

static int divide_up(int number, int by) { return (number + by - 1) / by; }

static int least(int a, int b) { return a < b ? a : b; }

/* Lay the grid over the image; false where a segment is no part of one row of blocks. */
static bool grid_make(const Header *header, Box box, Grid *grid) {
    int row = divide_up(header->width, header->mcu_width);
    unsigned int interval = header->restart_interval;
    if (interval == 0 || interval > (unsigned int)row || row % interval != 0) return false;
    int width = (int)interval * header->mcu_width, height = header->mcu_height;
    grid->across = row / (int)interval;
    grid->down = divide_up(header->height, height);
    grid->left = (box.left > CROP_MARGIN ? box.left - CROP_MARGIN : 0) / width;
    grid->top = (box.top > CROP_MARGIN ? box.top - CROP_MARGIN : 0) / height;
    grid->right = least(divide_up(box.right + CROP_MARGIN, width), grid->across);
    grid->bottom = least(divide_up(box.bottom + CROP_MARGIN, height), grid->down);
    return true;
}

/* Rows below the crop cost nothing anyhow: a decoder stops. */
static bool is_worth_it(const Grid *grid) {
    int64_t wanted = (int64_t)(grid->right - grid->left) * (grid->bottom - grid->top);
    return wanted * 100 <= (int64_t)grid->across * grid->bottom * WORTH_IT_PERCENT;
}

static void put_size(uint8_t *at, int height, int width) {
    at[0] = (uint8_t)(height >> 8);
    at[1] = (uint8_t)height;
    at[2] = (uint8_t)(width >> 8);
    at[3] = (uint8_t)width;
}

/* Find the marker that ends the segment at `position`; NULL where there is none. */
static const uint8_t *segment_end(const uint8_t *position, const uint8_t *end) {
    while (position + 1 < end) {
        position = memchr(position, 0xFF, (size_t)(end - position - 1));
        if (position == NULL) return NULL;
        if (position[1] != 0) return position;
        position += 2;
    }
    return NULL;
}

/* Copy the wanted segments behind `cut`'s header, with restart markers numbered anew. */
static bool copy_segments(const uint8_t *from, const uint8_t *end, const Grid *grid, Cut *cut) {
    int copied = 0;
    for (int row = 0; row < grid->bottom; row++) {
        for (int column = 0; column < grid->across; column++) {
            const uint8_t *stop = segment_end(from, end);
            bool is_last = row == grid->down - 1 && column == grid->across - 1;
            int marker = is_last ? MARKER_EOI : MARKER_RST0 + (row * grid->across + column) % 8;
            if (stop == NULL || stop[1] != marker) return false;
            if (row >= grid->top && column >= grid->left && column < grid->right) {
                uint8_t *to = cut->bytes + cut->size;
                memcpy(to, from, (size_t)(stop - from));
                to += stop - from;
                to[0] = 0xFF;
                to[1] = (uint8_t)(MARKER_RST0 + copied++ % 8);
                cut->size = (size_t)(to + END_BYTES - cut->bytes);
            }
            from = stop + END_BYTES;
        }
    }
    cut->bytes[cut->size - 1] = MARKER_EOI;
    return true;
}

int segments_cut(const uint8_t *data, size_t size, const Header *header, Box box, Cut *cut) {
    Grid grid;
    size_t size_at;
    int width = (int)header->restart_interval * header->mcu_width;
    if (!grid_make(header, box, &grid) || !is_worth_it(&grid)) return CUT_USELESS;
    cut->bytes = malloc(size);
    if (cut->bytes == NULL) return CUT_NO_MEMORY;
    cut->size = header_copy(data, header, cut->bytes, &size_at);
    cut->left = grid.left * width;
    cut->top = grid.top * header->mcu_height;
    if (size_at == 0 || !copy_segments(data + header->scan_at, data + size, &grid, cut)) {
        free(cut->bytes);
        cut->bytes = NULL;
        return CUT_IMPOSSIBLE;
    }
    put_size(cut->bytes + size_at,
             least(grid.bottom * header->mcu_height, header->height) - cut->top,
             least(grid.right * width, header->width) - cut->left);
    return CUT_DONE;
}
