/* Finds restart markers and takes the stuffing out. memchr does the searching: it is the fastest
 * loop over bytes on every machine, and there is an FF in only one byte of 150. */
#include "segments.h"

#include <string.h>

#include "huffman.h"

enum { RST0 = 0xD0, EOI = 0xD9 };

void segments_open(Segments *segments, const uint8_t *data, size_t size, size_t scan_at) {
    segments->data = data;
    segments->size = size;
    segments->at = scan_at;
    segments->starts[0] = (uint32_t)scan_at;
    segments->num_starts = 1;
}

/* The place of the next marker's FF, or `size` where there is none. */
static size_t find_marker(const uint8_t *data, size_t size, size_t at) {
    while (at + 1 < size) {
        const uint8_t *found = memchr(data + at, 0xFF, size - 1 - at);
        if (found == NULL) break;
        if (found[1] != 0) return (size_t)(found - data);
        at = (size_t)(found - data) + 2;
    }
    return size;
}

/* Extend the list of starts up to that of `index`. The last segment ends at the file's end, and
 * all others with the restart marker whose turn it is: anything else is damage. */
static int find_starts(Segments *segments, uint32_t index) {
    while (segments->num_starts <= index) {
        uint32_t num = segments->num_starts;
        size_t at = find_marker(segments->data, segments->size, segments->at);
        if (at >= segments->size) return -1;
        int is_last = num == segments->num_segments;
        int expected = is_last ? EOI : RST0 + (int)((num - 1) & 7);
        if (segments->data[at + 1] != expected) return -1;
        if (is_last && at + 2 != segments->size) return -1;
        segments->at = at + 2;
        segments->starts[segments->num_starts++] = (uint32_t)(at + 2);
    }
    return 0;
}

/* No marker lies between `from` and `to`: every FF is followed by a zero that goes. */
static size_t copy_plain(const uint8_t *from, const uint8_t *to, uint8_t *plain) {
    uint8_t *out = plain;
    while (from < to) {
        const uint8_t *found = memchr(from, 0xFF, (size_t)(to - from));
        size_t length = found == NULL ? (size_t)(to - from) : (size_t)(found + 1 - from);
        memcpy(out, from, length);
        out += length;
        from += length + 1;
    }
    return (size_t)(out - plain);
}

int64_t segments_load(Segments *segments, uint32_t index) {
    if (index >= segments->num_segments || find_starts(segments, index + 1)) return -1;
    const uint8_t *from = segments->data + segments->starts[index];
    const uint8_t *to = segments->data + segments->starts[index + 1] - 2;
    size_t length = copy_plain(from, to, segments->plain);
    memset(segments->plain + length, 0, READER_SLACK);
    return (int64_t)length;
}
