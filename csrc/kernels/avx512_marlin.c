/* Marlin for AVX-512. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

static inline void put_lanes(vector v[4], uint8_t *to, int64_t stride, bool stream)
{
    transpose_four(v);
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++) {
        put(to + l * stride, v[l], stream);
    }
}

static inline void get_lanes(vector v[4], const uint8_t *from, int64_t stride)
{
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++) {
        v[l] = load(from + l * stride);
    }
    transpose_four(v);
}

static inline vector turn(vector v)
{
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}

static inline void put_line(const vector v[1], uint8_t *to, bool stream)
{
    put(to, turn(v[0]), stream);
}

static inline void get_line(vector v[1], const uint8_t *from)
{
    v[0] = turn(load(from));
}

#include "marlin.h"

const awq_walks awq_avx512_marlin = {pack_rows, unpack_rows, pack_panel, unpack_panel};

TARGET_END
#endif
