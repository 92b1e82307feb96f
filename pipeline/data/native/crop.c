#include "crop.h"

#include <stdlib.h>

#include "points.h"
#include "resize.h"

/* What takes the rows: one of the two. */
typedef struct {
    Resize resize;
    Points points;
    bool is_points;
    const uint8_t *row;
} Sink;

static int sink_begin(Sink *sink, const Crop *crop) {
    const Box *box = &crop->region.box;
    int width = box->right - box->left, height = box->bottom - box->top;
    sink->is_points = crop->filter == CROP_POINTS;
    if (sink->is_points)
        return points_begin(&sink->points, width, height, crop->out_width, crop->out_height,
                            crop->flip, crop->out);
    return resize_begin(&sink->resize, width, height, crop->out_width, crop->out_height,
                        crop->filter, crop->flip, crop->region.vectors, crop->out);
}

static void sink_end(Sink *sink) {
    if (sink->is_points)
        points_end(&sink->points);
    else
        resize_end(&sink->resize);
}

static void take_row(void *context, int row) {
    Sink *sink = context;
    (void)row; /* they come in order */
    if (sink->is_points)
        points_row(&sink->points, sink->row);
    else
        resize_row(&sink->resize, sink->row);
}

static RegionStatus decode(RegionDecoder *decoder, const Box *box, Sink *sink) {
    size_t slack = sink->is_points ? 0 : sink->resize.slack;
    uint8_t *row = calloc(4 * (size_t)(box->right - box->left) + slack, 1);
    if (row == NULL) return REGION_NO_MEMORY;
    sink->row = row;
    RegionRows rows = {.at = row, .stride = 0, .done = take_row, .context = sink};
    RegionStatus status = region_rows(decoder, &rows);
    free(row);
    return status;
}

RegionStatus crop_resize(RegionDecoder *decoder, const Crop *crop) {
    RegionStatus status = region_open(decoder, &crop->region);
    if (status != REGION_OK) return status;
    Sink sink = {0};
    status = REGION_NO_MEMORY;
    if (sink_begin(&sink, crop) == 0) status = decode(decoder, &crop->region.box, &sink);
    sink_end(&sink);
    return status;
}
