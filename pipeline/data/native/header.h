/* The header of a JPEG, walked without libjpeg: what a crop must know before it decodes anything.
 * Bytes are untrusted; every read is bounded. Source: ITU-T T.81, annex B.
 */
#ifndef HEADER_H
#define HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MARKER_RST0 = 0xD0,
    MARKER_SOI = 0xD8,
    MARKER_EOI = 0xD9,
    MARKER_SOS = 0xDA,
};

typedef struct {
    int width, height, precision, components;
    bool sequential; /* Huffman, not progressive, and one scan of all components */
    int mcu_width, mcu_height; /* px; 8 where there is one component */
    unsigned int restart_interval; /* in MCUs; 0: none */
    size_t size_at; /* where the frame says height and width, two bytes each */
    size_t scan_at; /* where the first scan's data begin */
} Header;

/* Read the header up to the first scan; false where there is none or it is cut or broken. */
bool header_read(const uint8_t *data, size_t size, Header *header);

/* Copy what decoding needs of the header: no metadata but JFIF's and Adobe's, which tell the
 * colours. `to` has room for header->scan_at bytes; returns how many were written, and in *size_at
 * where height and width stand in the copy (0: nowhere, the bytes changed meanwhile). */
size_t header_copy(const uint8_t *data, const Header *header, uint8_t *to, size_t *size_at);

#endif
