/* Feeds operations of any kind to pixels of any size: what the sanitizers find is a failure, and so
 * is a byte that vectors change.
 *
 * An input is width, height, up to MAX_OPS operations of OP_BYTES each, then pixels, repeated.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

#define MAX_OPS 4
#define OP_BYTES 17 /* code, value, x, y */

static Op op_from(const uint8_t *bytes) {
    Op op = {.code = bytes[0] % OPS_COUNT};
    memcpy(&op.value, bytes + 1, 8);
    memcpy(&op.x, bytes + 9, 4);
    memcpy(&op.y, bytes + 13, 4);
    /* What Python refuses before it calls. */
    if (!isfinite(op.value)) op.value = 0;
    op.value = fmod(op.value, OPS_MAX_VALUE);
    return op;
}

static void fill(uint8_t *pixels, size_t num_bytes, const uint8_t *from, size_t size) {
    for (size_t i = 0; i < num_bytes; i++) pixels[i] = size > 0 ? from[i % size] : (uint8_t)i;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    Op ops[MAX_OPS];
    size_t count = 0;
    if (size < 2) return 0;
    int width = 1 + input[0], height = 1 + input[1];
    for (input += 2, size -= 2; count < MAX_OPS && size >= OP_BYTES; input += OP_BYTES) {
        ops[count++] = op_from(input);
        size -= OP_BYTES;
    }
    size_t num_bytes = (size_t)3 * width * height;
    uint8_t *first = malloc(num_bytes), *second = malloc(num_bytes);
    fill(first, num_bytes, input, size);
    memcpy(second, first, num_bytes);
    ops_apply(first, width, height, ops, count, true);
    ops_apply(second, width, height, ops, count, false);
    if (memcmp(first, second, num_bytes) != 0) {
        fprintf(stderr, "vectors change pixels\n");
        abort();
    }
    free(first);
    free(second);
    return 0;
}
