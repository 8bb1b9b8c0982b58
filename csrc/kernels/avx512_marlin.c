/* Marlin for AVX-512. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

static inline vector turn(vector v)
{
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}

static inline void join_line(const vector v[HALVES], vector line[HALVES])
{
    line[0] = turn(v[0]);
}

static inline void split_line(const uint8_t *from, vector v[HALVES])
{
    v[0] = turn(load(from));
}

#include "marlin.h"

const awq_walks awq_avx512_marlin = {
    .pack_rows = pack_rows,
    .unpack_rows = unpack_rows,
    .pack_panel = pack_panel,
    .unpack_panel = unpack_panel,
};

TARGET_END
#endif
