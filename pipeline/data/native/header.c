#include "header.h"

#include <string.h>

enum { SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, JPG = 0xC8, DAC = 0xCC, SOF15 = 0xCF };
enum { TEM = 0x01, RST7 = 0xD7, DRI = 0xDD, APP0 = 0xE0, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE };

/* A marker with its segment: `at` is where the length stands, `length` counts its own two bytes. */
typedef struct {
    int marker;
    size_t at, length;
} Segment;

static unsigned int two(const uint8_t *bytes) { return (unsigned int)bytes[0] << 8 | bytes[1]; }

/* Read the segment that begins at *position and move behind it. Standing fill bytes and markers
 * without a segment are left to libjpeg's judgement: such files are not for the fast path. */
static bool next_segment(const uint8_t *data, size_t size, size_t *position, Segment *segment) {
    size_t at = *position;
    if (at + 4 > size || data[at] != 0xFF) return false;
    while (at + 4 < size && data[at + 1] == 0xFF) at++;
    segment->marker = data[at + 1];
    if (segment->marker == 0 || segment->marker == TEM ||
        (segment->marker >= MARKER_RST0 && segment->marker <= MARKER_EOI))
        return false;
    segment->at = at + 2;
    segment->length = two(data + segment->at);
    if (segment->length < 2 || segment->length > size - segment->at) return false;
    *position = segment->at + segment->length;
    return true;
}

static bool is_frame(int marker) {
    return marker >= SOF0 && marker <= SOF15 && marker != DHT && marker != JPG && marker != DAC;
}

static bool read_frame(const uint8_t *data, const Segment *segment, Header *header) {
    const uint8_t *frame = data + segment->at;
    if (header->components || segment->length < 8) return false;
    header->precision = frame[2];
    header->height = (int)two(frame + 3);
    header->width = (int)two(frame + 5);
    header->components = frame[7];
    header->size_at = segment->at + 3;
    if (header->width == 0 || header->height == 0 || header->components == 0) return false;
    if (segment->length != 8 + 3 * (size_t)header->components) return false;
    int wide = 1, high = 1;
    for (int i = 0; i < header->components; i++) {
        int factors = frame[8 + 3 * i + 1], across = factors >> 4, down = factors & 15;
        if (across < 1 || across > 4 || down < 1 || down > 4) return false;
        wide = across > wide ? across : wide;
        high = down > high ? down : high;
    }
    header->mcu_width = header->components == 1 ? 8 : 8 * wide;
    header->mcu_height = header->components == 1 ? 8 : 8 * high;
    header->sequential = segment->marker == SOF0 || segment->marker == SOF1;
    return true;
}

bool header_read(const uint8_t *data, size_t size, Header *header) {
    Segment segment;
    size_t position = 2;
    memset(header, 0, sizeof *header);
    if (size < 4 || data[0] != 0xFF || data[1] != MARKER_SOI) return false;
    while (next_segment(data, size, &position, &segment)) {
        if (is_frame(segment.marker) && !read_frame(data, &segment, header)) return false;
        if (segment.marker == DRI) {
            if (segment.length != 4) return false;
            header->restart_interval = two(data + segment.at + 2);
        }
        if (segment.marker == MARKER_SOS) {
            if (header->components == 0 || segment.length < 3) return false;
            header->sequential &= data[segment.at + 2] == header->components;
            header->scan_at = position;
            return true;
        }
    }
    return false;
}

static bool tells_nothing_of_pixels(int marker) {
    return marker == COM || (marker > APP0 && marker <= APP15 && marker != APP14);
}

size_t header_copy(const uint8_t *data, const Header *header, uint8_t *to, size_t *size_at) {
    size_t position = 2, written = 2;
    Segment segment;
    *size_at = 0;
    memcpy(to, data, 2);
    while (position < header->scan_at &&
           next_segment(data, header->scan_at, &position, &segment)) {
        if (tells_nothing_of_pixels(segment.marker)) continue;
        if (segment.at < header->size_at && header->size_at < position)
            *size_at = written + header->size_at - segment.at + 2;
        memcpy(to + written, data + segment.at - 2, segment.length + 2);
        written += segment.length + 2;
    }
    return written;
}
