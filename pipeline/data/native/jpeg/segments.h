/* The coded bytes of a scan: one piece, or pieces between restart markers (T.81 B.1.1.5), each of
 * which can be decoded without the ones before it. */
#ifndef SEGMENTS_H
#define SEGMENTS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *data; /* the file */
    size_t size, at;     /* at: behind the last marker found */
    uint32_t *starts;    /* where segment i begins; starts[i + 1] - 2 is its end */
    uint32_t num_starts, num_segments;
    uint8_t *plain; /* room for a segment without its stuffing: size + READER_SLACK */
} Segments;

/* `starts` has room for num_segments + 1, `plain` for size + READER_SLACK. */
void segments_open(Segments *segments, const uint8_t *data, size_t size, size_t scan_at);

/* Copy segment `index` to segments->plain, zeros behind it. Returns its bytes, or -1 where the
 * markers are not what they must be. */
int64_t segments_load(Segments *segments, uint32_t index);

#endif
