/* Words of V1 beside words of V1 that cross them, for both x86 instruction sets: the rows of 8 x 8 codes are words of
   one payload, and their columns are words of the other. Included below turned.h. */
#ifndef AWQPACK_CROSSED_H
#define AWQPACK_CROSSED_H

_Static_assert(AWQ_CROSSED_CODES == SIDE * AWQ_WORD_CODES, "words that cross a line of words make a line");

enum {
    /* Halves of lines wait for memory one after the other; whole lines, copied first, side by side. */
    IS_STAGED = HALVES > 1,
    STAGE_ROWS = IS_STAGED ? AWQ_CROSSED_CODES : 1,
};

/* Turns 8 x 8 nibbles of each word: nibble i of vector j and nibble j of vector i change places. */
ALWAYS_INLINE void transpose_nibbles(vector v[AWQ_WORD_CODES])
{
#pragma GCC unroll 3
    for (int side = AWQ_WORD_CODES / 2; side > 0; side /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < AWQ_WORD_CODES; i++) {
            if ((i & side) == 0) {
                swap_nibbles(&v[i], &v[i + side], side);
            }
        }
    }
}

/* A line of each row of a step. */
ALWAYS_INLINE void copy_lines(const uint8_t *from, int64_t stride, uint8_t (*stage)[LINE])
{
    for (int i = 0; i < AWQ_CROSSED_CODES; i++) {
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) {
            put(stage[i] + VECTOR * h, load(from + i * stride + VECTOR * h), false);
        }
    }
}

/* A line of words of each of eight rows: those that nibble i of its words is in to lines[i][at]. */
ALWAYS_INLINE void cross_words(const uint8_t *from, const int64_t starts[AWQ_WORD_CODES], uint8_t (*lines)[SIDE][LINE],
                               int at)
{
    for (int h = 0; h < HALVES; h++) {
        vector v[AWQ_WORD_CODES];
#pragma GCC unroll 8
        for (int i = 0; i < AWQ_WORD_CODES; i++) {
            v[i] = load(from + starts[i] + VECTOR * h);
        }
        transpose_nibbles(v);
#pragma GCC unroll 8
        for (int i = 0; i < AWQ_WORD_CODES; i++) {
            put(lines[i][at] + VECTOR * h, v[i], false);
        }
    }
}

/* Where a target starts off a line, runs of a unit are too short to be streamed as lines that are shifted. */
static void cross_v1(const awq_crossing *c)
{
    alignas(LINE) uint8_t lines[AWQ_WORD_CODES][SIDE][LINE], stage[STAGE_ROWS][LINE];
    const int64_t stride = IS_STAGED ? LINE : c->source_stride;
    int64_t from_starts[AWQ_WORD_CODES], to_starts[AWQ_WORD_CODES]; /* of the lines of a word's nibbles */
    for (int i = 0; i < AWQ_WORD_CODES; i++) {
        from_starts[i] = awq_place_of(&awq_packings[c->target], i).col * stride;
        to_starts[i] = awq_place_of(&awq_packings[c->source], i).col * c->target_stride;
    }
    const way way = way_of(c->stream, c->to, c->target_stride);
    const writer w = {.way = way == STREAM ? STREAM : PLAIN};
    for (int64_t col = 0; col < c->cols; col += AWQ_CROSSED_CODES) {
        uint8_t *to = c->to + col * c->target_stride;
        for (int64_t row = 0; row < c->rows; row += AWQ_CROSSED_CODES, to += LINE) {
            const uint8_t *from = c->from + row * c->source_stride + col / AWQ_WORD_CODES * AWQ_WORD_BYTES;
            if (IS_STAGED) {
                copy_lines(from, c->source_stride, stage);
                from = stage[0];
            }
            for (int i = 0; i < SIDE; i++) {
                cross_words(from + AWQ_WORD_CODES * i * stride, from_starts, lines, i);
            }
            for (int i = 0; i < AWQ_WORD_CODES; i++) {
                put_words(lines[i], &w, to + to_starts[i], AWQ_WORD_CODES * c->target_stride);
            }
        }
    }
}

#endif
