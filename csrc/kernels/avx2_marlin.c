/* Marlin for AVX2. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx2.h"

/* Of 2 x 4 words, pairs 0, 2, 1, 3 of them transposed; its own inverse. */
static inline vector turn(vector v)
{
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
}

static inline void put_line(const vector v[2], uint8_t *to, bool stream)
{
    const vector a = turn(v[0]), b = turn(v[1]);
    put(to, zip64_low(a, b), stream);
    put(to + VECTOR, zip64_high(a, b), stream);
}

static inline void get_line(vector v[2], const uint8_t *from)
{
    const vector a = load(from), b = load(from + VECTOR);
    v[0] = turn(zip64_low(a, b));
    v[1] = turn(zip64_high(a, b));
}

#include "marlin.h"

const awq_walks awq_avx2_marlin = {pack_rows, unpack_rows, pack_panel, unpack_panel, NULL, NULL, false};

TARGET_END
#endif
