/* Decodes a rectangle of a baseline JPEG.
 *
 * 1. The header says which blocks of each component the rectangle needs.
 * 2. Rows of MCUs from the first needed to the last one: blocks beside it are run through the
 *    Huffman decoder without being kept, or jumped over where restart markers allow.
 * 3. Needed blocks are transformed into a strip of samples, which becomes rows of pixels.
 * 4. What lies below is never looked at, except that the file must end with an EOI.
 *
 * Bytes are not trusted: all sizes are limited by the header's checks and by the file's length,
 * and reading beyond a segment meets zeros and is noticed once per MCU.
 */
#include "region.h"

#include <stdlib.h>
#include <string.h>

#include "../vectors.h"
#include "idct.h"
#include "segments.h"

#define BLOCK_STRIDE 80 /* 64 coefficients and nobody's; a multiple of 32 bytes */
#define KEPT_BYTES (4u << 20) /* of memory from image to image; ten times what most take */

/* One block of an MCU. */
typedef struct {
    Plane *plane;
    int x, y;
} Slot;

struct RegionDecoder {
    int16_t blocks[MAX_BLOCKS_IN_MCU][BLOCK_STRIDE] __attribute__((aligned(32)));
    Planes planes;
    DcTable dc[4];
    AcTable ac[4];
    JpegHeader header;
    Segments segments;
    BitReader reader;
    Slot slots[MAX_BLOCKS_IN_MCU];
    BlockTask tasks[MAX_BLOCKS_IN_MCU], skips[MAX_BLOCKS_IN_MCU];
    int num_slots;
    uint32_t interval; /* MCUs in a segment */
    uint32_t segment, mcu;
    int64_t segment_bytes;
    uint8_t *room;
    size_t room_bytes;
};

RegionDecoder *region_new(void) {
    size_t bytes = (sizeof(RegionDecoder) + 63) / 64 * 64;
    RegionDecoder *decoder = aligned_alloc(64, bytes);
    if (decoder != NULL) memset(decoder, 0, bytes);
    return decoder;
}

void region_free(RegionDecoder *decoder) {
    if (decoder == NULL) return;
    free(decoder->room);
    free(decoder);
}

static void drop_room(RegionDecoder *decoder) {
    free(decoder->room);
    decoder->room = NULL;
    decoder->room_bytes = 0;
}

static size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

static uint32_t num_mcus(const RegionDecoder *decoder) {
    return (uint32_t)decoder->planes.num_across * (uint32_t)decoder->planes.num_down;
}

/* One piece of memory, kept for the next image: planes, bytes without stuffing, starts. */
static RegionStatus take_room(RegionDecoder *decoder, size_t size, uint32_t num_segments) {
    size_t planes = align(planes_bytes(&decoder->planes)), plain = align(size + READER_SLACK);
    size_t total = planes + plain + sizeof(uint32_t) * ((size_t)num_segments + 1);
    if (total > decoder->room_bytes) {
        drop_room(decoder);
        decoder->room = aligned_alloc(64, align(total));
        if (decoder->room == NULL) return REGION_NO_MEMORY;
        decoder->room_bytes = align(total);
    }
    planes_place(&decoder->planes, decoder->room);
    decoder->segments.plain = decoder->room + planes;
    decoder->segments.starts = (uint32_t *)(void *)(decoder->room + planes + plain);
    return REGION_OK;
}

static RegionStatus open_segments(RegionDecoder *decoder, const uint8_t *data, size_t size) {
    uint32_t total = num_mcus(decoder);
    decoder->interval = (uint32_t)decoder->header.restart_interval;
    if (decoder->interval == 0) decoder->interval = total;
    uint32_t num = (total + decoder->interval - 1) / decoder->interval;
    if (num > size / 2) return REGION_NOT_MINE; /* there is a marker behind each */
    RegionStatus status = take_room(decoder, size, num);
    if (status != REGION_OK) return status;
    segments_open(&decoder->segments, data, size, decoder->header.scan_at);
    decoder->segments.num_segments = num;
    decoder->segment = num; /* none */
    return REGION_OK;
}

static int open_tables(RegionDecoder *decoder) {
    for (int i = 0; i < decoder->planes.num; i++) {
        Plane *plane = &decoder->planes.planes[i];
        int dc = decoder->header.components[i].dc, ac = decoder->header.components[i].ac;
        plane->dc = &decoder->dc[dc];
        plane->ac = &decoder->ac[ac];
        if (huffman_build_dc(plane->dc, &decoder->header.dc[dc])) return -1;
        if (huffman_build_ac(plane->ac, &decoder->header.ac[ac])) return -1;
    }
    return 0;
}

static void open_slots(RegionDecoder *decoder) {
    decoder->num_slots = 0;
    for (int i = 0; i < decoder->planes.num; i++) {
        Plane *plane = &decoder->planes.planes[i];
        for (int y = 0; y < plane->v; y++)
            for (int x = 0; x < plane->h; x++)
                decoder->slots[decoder->num_slots++] = (Slot){plane, x, y};
    }
    for (int i = 0; i < decoder->num_slots; i++) {
        Plane *plane = decoder->slots[i].plane;
        decoder->skips[i] = (BlockTask){plane->dc, plane->ac, &plane->last_dc, NULL, 0};
        decoder->tasks[i] = decoder->skips[i];
    }
}

static int load_segment(RegionDecoder *decoder, uint32_t index) {
    decoder->segment_bytes = segments_load(&decoder->segments, index);
    if (decoder->segment_bytes < 0) return -1;
    reader_open(&decoder->reader, decoder->segments.plain);
    decoder->segment = index;
    decoder->mcu = index * decoder->interval;
    for (int i = 0; i < decoder->planes.num; i++) decoder->planes.planes[i].last_dc = 0;
    return 0;
}

/* After each MCU: not beyond the segment, and at its last one not more than a byte before. */
static int check_reader(RegionDecoder *decoder) {
    int64_t used = 8 * (int64_t)(decoder->reader.next - decoder->segments.plain);
    int64_t left = 8 * decoder->segment_bytes - (used - (int64_t)decoder->reader.count);
    decoder->mcu++;
    if (left < 0) return -1;
    int is_last = decoder->mcu % decoder->interval == 0 || decoder->mcu == num_mcus(decoder);
    return is_last && left >= 8 ? -1 : 0;
}

static int skip_mcu(RegionDecoder *decoder) {
    if (huffman_mcu(&decoder->reader, decoder->skips, decoder->num_slots, idct_order,
                    decoder->planes.vectors))
        return -1;
    return check_reader(decoder);
}

/* Go to the MCU by the shortest way. */
static int seek_mcu(RegionDecoder *decoder, uint32_t mcu) {
    uint32_t segment = mcu / decoder->interval;
    if (segment != decoder->segment && load_segment(decoder, segment)) return -1;
    while (decoder->mcu < mcu)
        if (skip_mcu(decoder)) return -1;
    return 0;
}

static int is_kept(const Slot *slot, int column, int row) {
    const Plane *plane = slot->plane;
    int x = column * plane->h + slot->x, y = row * plane->v + slot->y;
    return x >= plane->x0 && x < plane->x1 && y >= plane->y0 && y < plane->y1;
}

/* Decode first and transform then: what was stored by words has by then left the store buffer,
 * from which a vector cannot be read. */
static int decode_mcu(RegionDecoder *decoder, int column, int row) {
    BlockTask *tasks = decoder->tasks;
    int num = decoder->num_slots;
    for (int i = 0; i < num; i++)
        tasks[i].block = is_kept(&decoder->slots[i], column, row) ? decoder->blocks[i] : NULL;
    bool vectors = decoder->planes.vectors;
    if (huffman_mcu(&decoder->reader, tasks, num, idct_order, vectors)) return -1;
    for (int i = 0; i < num; i++) {
        if (tasks[i].num == 0) continue;
        const Slot *slot = &decoder->slots[i];
        const Plane *plane = slot->plane;
        size_t x = 8 * (size_t)(column * plane->h + slot->x - plane->x0);
        uint8_t *out = plane->samples + 8 * (size_t)slot->y * plane->stride + x;
        if (idct_block(tasks[i].block, plane->quant, tasks[i].num, out, plane->stride, vectors))
            return -1;
    }
    return check_reader(decoder);
}

static int decode_row(RegionDecoder *decoder, int row) {
    const Planes *planes = &decoder->planes;
    uint32_t first = (uint32_t)row * (uint32_t)planes->num_across;
    for (int column = planes->x0; column < planes->x1; column++) {
        if (seek_mcu(decoder, first + (uint32_t)column)) return -1;
        if (decode_mcu(decoder, column, row)) return -1;
    }
    return 0;
}

static int decode_rows(RegionDecoder *decoder, const RegionRows *rows) {
    Planes *planes = &decoder->planes;
    int top = planes->box.top, y = top;
    for (int row = planes->y0; row < planes->y1; row++) {
        if (decode_row(decoder, row)) return -1;
        planes_close_edges(planes);
        for (int end = planes_ready(planes, row); y < end; y++) {
            planes_pixels(planes, row, y, rows->at + rows->stride * (size_t)(y - top));
            if (rows->done != NULL) rows->done(rows->context, y - top);
        }
        planes_advance(planes);
    }
    return 0;
}

static int is_inside(Box box, const JpegHeader *header) {
    return box.left >= 0 && box.top >= 0 && box.left < box.right && box.top < box.bottom &&
           box.right <= header->width && box.bottom <= header->height;
}

RegionStatus region_open(RegionDecoder *decoder, const Region *region) {
    JpegHeader *header = &decoder->header;
    const uint8_t *data = region->data;
    size_t size = region->size;
    if (size >= UINT32_MAX || jpeg_header(data, size, header)) return REGION_NOT_MINE;
    if (data[size - 2] != 0xFF || data[size - 1] != 0xD9) return REGION_NOT_MINE;
    if (!is_inside(region->box, header)) return REGION_OUTSIDE;
    planes_open(&decoder->planes, header, region->box, region->vectors && has_vectors());
    if (decoder->room_bytes > KEPT_BYTES) drop_room(decoder);
    if (open_tables(decoder)) return REGION_NOT_MINE;
    open_slots(decoder);
    return open_segments(decoder, data, size);
}

RegionStatus region_rows(RegionDecoder *decoder, const RegionRows *rows) {
    return decode_rows(decoder, rows) ? REGION_NOT_MINE : REGION_OK;
}
