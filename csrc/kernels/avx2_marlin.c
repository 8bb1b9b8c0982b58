/* Marlin for AVX2. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx2.h"

/* Of 2 x 4 words, pairs 0, 2, 1, 3 of them transposed; its own inverse. */
static inline vector turn(vector v)
{
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
}

static inline void join_line(const vector v[HALVES], vector line[HALVES])
{
    const vector a = turn(v[0]), b = turn(v[1]);
    line[0] = zip64_low(a, b);
    line[1] = zip64_high(a, b);
}

static inline void split_line(const uint8_t *from, vector v[HALVES])
{
    const vector a = load(from), b = load(from + VECTOR);
    v[0] = turn(zip64_low(a, b));
    v[1] = turn(zip64_high(a, b));
}

#include "marlin.h"

const awq_walks awq_avx2_marlin = {
    .pack_rows = pack_rows,
    .unpack_rows = unpack_rows,
    .pack_panel = pack_panel,
    .unpack_panel = unpack_panel,
};

TARGET_END
#endif
