/* Cuts a part out of a JPEG without decoding it: where restart markers divide its rows of blocks
 * into segments, those that a crop needs make a smaller JPEG of their own. A decoder then skips in
 * both directions. Only whole bytes are copied; the pixels stay what they are.
 */
#ifndef SEGMENTS_H
#define SEGMENTS_H

#include "header.h"

typedef struct {
    int left, top, right, bottom; /* px */
} Box;

/* Pixels around a crop that upsampling of chroma looks at. */
#define CROP_MARGIN 2

typedef struct {
    uint8_t *bytes; /* the smaller JPEG; to be freed */
    size_t size;
    int left, top; /* where its corner lies in the large one */
} Cut;

enum { CUT_DONE, CUT_USELESS, CUT_IMPOSSIBLE, CUT_NO_MEMORY };

/* Cut `box` with its margin out of `data`, whose last two bytes are the end of the image.
 * CUT_USELESS: there are no such segments, or too many are needed. CUT_IMPOSSIBLE: the markers
 * are not where they should be. */
int segments_cut(const uint8_t *data, size_t size, const Header *header, Box box, Cut *cut);

#endif
