/* Markers before the first scan. Every length is checked against the file before it is used. */
#include "header.h"

#include <string.h>

enum { SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, SOI = 0xD8, SOS = 0xDA, DQT = 0xDB, DRI = 0xDD };
enum { APP0 = 0xE0, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE };

/* What decides between YCbCr and RGB. */
typedef struct {
    int has_jfif, adobe_transform; /* -1: no Adobe marker */
} Colors;

static int u16(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int read_quant(const uint8_t *at, size_t left, JpegHeader *header) {
    for (; left > 0; at += 65, left -= 65) {
        if (left < 65 || at[0] > 3) return -1; /* 16 bit tables: not for 8 bit samples */
        for (int i = 0; i < 64; i++) header->quant[at[0]][i] = at[1 + i];
    }
    return 0;
}

static int read_codes(const uint8_t *at, size_t left, JpegHeader *header) {
    while (left > 0) {
        if (left < 17 || (at[0] & 0xEF) > 3) return -1;
        HuffmanCode *code = (at[0] & 0x10 ? header->ac : header->dc) + (at[0] & 3);
        size_t total = 0;
        for (int i = 0; i < 16; i++) total += at[1 + i];
        if (total == 0 || total > 256 || left < 17 + total) return -1;
        memset(code, 0, sizeof *code);
        memcpy(code->counts, at + 1, 16);
        memcpy(code->symbols, at + 17, total);
        code->num_symbols = (int)total;
        at += 17 + total;
        left -= 17 + total;
    }
    return 0;
}

static int is_factor(int value) { return value == 1 || value == 2 || value == 4; }

static int read_component(const uint8_t *at, JpegHeader *header, Component *component) {
    *component = (Component){.id = at[0], .h = at[1] >> 4, .v = at[1] & 15, .quant = at[2]};
    if (!is_factor(component->h) || !is_factor(component->v) || at[2] > 3) return -1;
    if (header->num_components == 1) component->h = component->v = 1; /* no MCUs: T.81 A.2.2 */
    if (component->h > header->max_h) header->max_h = component->h;
    if (component->v > header->max_v) header->max_v = component->v;
    return 0;
}

static int read_frame(const uint8_t *at, size_t left, JpegHeader *header) {
    if (left < 6 || header->width || at[0] != 8) return -1;
    int num = at[5], blocks = 0;
    if ((num != 1 && num != 3) || left != 6 + 3 * (size_t)num) return -1;
    header->height = u16(at + 1);
    header->width = u16(at + 3);
    header->num_components = num;
    if (!header->width || !header->height) return -1;
    if ((uint64_t)header->width * header->height > MAX_PIXELS) return -1;
    for (int i = 0; i < num; i++) {
        Component *component = &header->components[i];
        if (read_component(at + 6 + 3 * i, header, component)) return -1;
        blocks += component->h * component->v;
    }
    return blocks <= MAX_BLOCKS_IN_MCU ? 0 : -1;
}

/* The scan must hold every component in the frame's order, whole. */
static int read_scan(const uint8_t *at, size_t left, JpegHeader *header) {
    int num = header->num_components;
    if (num == 0 || left != 4 + 2 * (size_t)num || at[0] != num) return -1;
    for (int i = 0; i < num; i++) {
        Component *component = &header->components[i];
        component->dc = at[2 + 2 * i] >> 4;
        component->ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != component->id || component->dc > 3 || component->ac > 3) return -1;
        if (!header->dc[component->dc].num_symbols) return -1;
        if (!header->ac[component->ac].num_symbols || !header->quant[component->quant][0])
            return -1;
    }
    const uint8_t *spectrum = at + 1 + 2 * num;
    return spectrum[0] == 0 && spectrum[1] == 63 && spectrum[2] == 0 ? 0 : -1;
}

static int read_interval(const uint8_t *at, size_t left, JpegHeader *header) {
    if (left != 2) return -1;
    header->restart_interval = u16(at);
    return 0;
}

/* libjpeg warns of a JFIF version that it does not know. */
static int read_application(int marker, const uint8_t *at, size_t left, Colors *colors) {
    if (marker == APP0 && left >= 14 && memcmp(at, "JFIF", 5) == 0) {
        colors->has_jfif = 1;
        if (at[5] != 1) return -1;
    }
    if (marker == APP14 && left >= 12 && memcmp(at, "Adobe", 5) == 0)
        colors->adobe_transform = at[11];
    return 0;
}

static int read_segment(int marker, const uint8_t *at, size_t left, JpegHeader *header,
                        Colors *colors) {
    switch (marker) {
    case SOF0:
    case SOF1: return read_frame(at, left, header);
    case DHT: return read_codes(at, left, header);
    case DQT: return read_quant(at, left, header);
    case DRI: return read_interval(at, left, header);
    case SOS: return read_scan(at, left, header);
    case COM: return 0;
    default: break;
    }
    if (marker < APP0 || marker > APP15) return -1; /* progressive, arithmetic, DNL, ... */
    return read_application(marker, at, left, colors);
}

/* The decoders in use guess as libjpeg does; whatever it might take for RGB is not for here. */
static int is_ycc(const JpegHeader *header, const Colors *colors) {
    const Component *c = header->components;
    if (header->num_components == 1 || colors->has_jfif) return 1;
    if (colors->adobe_transform >= 0) return colors->adobe_transform == 1;
    return !(c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B');
}

int jpeg_header(const uint8_t *data, size_t size, JpegHeader *header) {
    Colors colors = {0, -1};
    memset(header, 0, sizeof *header);
    if (size < 4 || data[0] != 0xFF || data[1] != SOI) return -1;
    for (size_t at = 2; at + 4 <= size && data[at] == 0xFF;) {
        int marker = data[at + 1];
        if (marker == 0xFF) { /* fill byte */
            at++;
            continue;
        }
        size_t length = (size_t)u16(data + at + 2);
        if (length < 2 || length > size - at - 2) return -1;
        if (read_segment(marker, data + at + 4, length - 2, header, &colors)) return -1;
        at += 2 + length;
        if (marker == SOS) {
            header->scan_at = at;
            return is_ycc(header, &colors) ? 0 : -1;
        }
    }
    return -1;
}
