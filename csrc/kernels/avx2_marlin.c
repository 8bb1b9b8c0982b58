/* Marlin for AVX2. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx2.h"

static inline void put_lanes(const vector v[4], uint8_t *to, int64_t stride, bool stream)
{
    put(to, _mm256_permute2x128_si256(v[0], v[1], 0x20), stream);
    put(to + VECTOR, _mm256_permute2x128_si256(v[2], v[3], 0x20), stream);
    put(to + stride, _mm256_permute2x128_si256(v[0], v[1], 0x31), stream);
    put(to + stride + VECTOR, _mm256_permute2x128_si256(v[2], v[3], 0x31), stream);
}

static inline void get_lanes(vector v[4], const uint8_t *from, int64_t stride)
{
    const vector a = load(from), b = load(from + VECTOR), c = load(from + stride), d = load(from + stride + VECTOR);
    v[0] = _mm256_permute2x128_si256(a, c, 0x20);
    v[1] = _mm256_permute2x128_si256(a, c, 0x31);
    v[2] = _mm256_permute2x128_si256(b, d, 0x20);
    v[3] = _mm256_permute2x128_si256(b, d, 0x31);
}

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

const awq_walks awq_avx2_marlin = {pack_rows, unpack_rows, pack_panel, unpack_panel};

TARGET_END
#endif
