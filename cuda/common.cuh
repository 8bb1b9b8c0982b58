/* What all kernels share: their job, the byte shuffles of each packing, memory accesses of any alignment, invalid codes. */
#ifndef AWQPACK_CUDA_COMMON_CUH
#define AWQPACK_CUDA_COMMON_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include "awqpack/packing.h"
#include "fault.cuh"

namespace awq_cuda {

/* One launch: a batch of equally shaped matrices. Strides are in bytes. */
struct Job {
    uint8_t *codes;
    uint8_t *payload;
    Fault fault;
    int64_t rows, cols;
    int64_t codes_row, codes_col, codes_batch;
    int64_t payload_row, payload_col, payload_batch;
    uint64_t first;      /* linear index of code (0, 0) of the first matrix ... */
    uint64_t batch_step; /* ... and how much further it is in the next one */
    bool codes_aligned;  /* every full vector of codes is aligned to its size */
    bool payload_aligned;
};

/* `split` is what the kernel family needs to find its place in the grid; see the shape function beside each. */
using Kernel = void (*)(Job job, uint32_t split);

/* The launch shape of a job; blocks may exceed what a grid can have. */
struct Shape {
    uint64_t blocks;
    dim3 threads;
    uint32_t split;
    size_t shared = 0; /* bytes */
};

/* How vectors are loaded. */
constexpr int load_plain = 0;
constexpr int load_once = 1;  /* the first lines to leave the caches */
constexpr int load_128 = 2;   /* L2 fetches 128 bytes at a time, */
constexpr int load_256 = 3;   /* or 256 */

constexpr uint32_t low_nibbles = 0x0f0f0f0f;
constexpr uint32_t high_nibbles = 0xf0f0f0f0;

/* N 32-bit words: 4N codes of a row or of a column, or N payload words. */
template <int N>
struct Words {
    uint32_t w[N];
};

inline __host__ __device__ int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* ---- packings ---- */

constexpr __host__ __device__ bool interleaves_rows(awq_packing packing)
{
    return packing == AWQ_PACKING_V2;
}

constexpr __host__ __device__ int element_bytes(awq_packing packing)
{
    return packing == AWQ_PACKING_V2 ? 2 : 4;
}

/* Payload rows of a matrix of codes. */
constexpr __host__ __device__ int64_t payload_lines(awq_packing packing, int64_t rows)
{
    return interleaves_rows(packing) ? rows / AWQ_QUAD_ROWS : rows;
}

/* Every payload word holds eight columns; first of those of word 0..7 of a block. */
constexpr __host__ __device__ int word_column(awq_packing packing, int word)
{
    return packing == AWQ_PACKING_V2 ? 32 * (word / 4) + 2 * (word % 4) : AWQ_WORD_CODES * word;
}

/* Column, counted from word_column, in the low nibble of byte 0..3 of a word; the high nibble is high_step further. */
constexpr __host__ __device__ int low_column(awq_packing packing, int byte)
{
    return packing == AWQ_PACKING_V1           ? 2 * byte
           : packing == AWQ_PACKING_V1_REORDER ? 4 * (byte % 2) + byte / 2
                                             : 16 * (byte % 2) + byte / 2;
}

constexpr __host__ __device__ int high_step(awq_packing packing)
{
    return packing == AWQ_PACKING_V1 ? 1 : packing == AWQ_PACKING_V1_REORDER ? 2 : 8;
}

/* Bytes whose low nibbles come from `low` and whose high nibbles come from the low ones of `high`. */
__device__ __forceinline__ uint32_t join_nibbles(uint32_t low, uint32_t high)
{
    return (low & low_nibbles) | ((high << 4) & high_nibbles);
}

/* The V1 word of eight codes a row, four in each argument. */
template <awq_packing L>
__device__ __forceinline__ uint32_t pack_word(uint32_t first, uint32_t second)
{
    first &= low_nibbles;
    second &= low_nibbles;
    if constexpr (L == AWQ_PACKING_V1) {
        return __byte_perm(first | first >> 4, second | second >> 4, 0x6420);
    } else {
        return __byte_perm(first | first >> 12, second | second >> 12, 0x5140);
    }
}

template <awq_packing L>
__device__ __forceinline__ void unpack_word(uint32_t word, uint32_t *first, uint32_t *second)
{
    const uint32_t low = word & low_nibbles;
    const uint32_t high = word >> 4 & low_nibbles;
    if constexpr (L == AWQ_PACKING_V1) {
        *first = __byte_perm(low, high, 0x5140);
        *second = __byte_perm(low, high, 0x7362);
    } else {
        *first = __byte_perm(low, high, 0x6420);
        *second = __byte_perm(low, high, 0x7531);
    }
}

/* Transposes a 4x4 square of bytes, one row a word. */
__device__ __forceinline__ void transpose_bytes(uint32_t w[4])
{
    const uint32_t a = __byte_perm(w[0], w[1], 0x5140);
    const uint32_t b = __byte_perm(w[2], w[3], 0x5140);
    const uint32_t c = __byte_perm(w[0], w[1], 0x7362);
    const uint32_t d = __byte_perm(w[2], w[3], 0x7362);
    w[0] = __byte_perm(a, b, 0x5410);
    w[1] = __byte_perm(a, b, 0x7632);
    w[2] = __byte_perm(c, d, 0x5410);
    w[3] = __byte_perm(c, d, 0x7632);
}

/* ---- memory ---- */

/* Loads N words from an address aligned to all of them. */
template <int N, int Load>
__device__ __forceinline__ Words<N> load_vector(const uint8_t *p)
{
    static_assert(N == 2 || N == 4, "8 or 16 bytes");
    Words<N> v;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (Load == load_128 || Load == load_256) {
        const size_t address = __cvta_generic_to_global(p);
        if constexpr (N == 4 && Load == load_128) {
            asm("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                : "l"(address));
        } else if constexpr (N == 4) {
            asm("ld.global.nc.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                : "l"(address));
        } else if constexpr (Load == load_128) {
            asm("ld.global.nc.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.w[0]), "=r"(v.w[1]) : "l"(address));
        } else {
            asm("ld.global.nc.L2::256B.v2.u32 {%0, %1}, [%2];" : "=r"(v.w[0]), "=r"(v.w[1]) : "l"(address));
        }
        return v;
    }
#endif
    if constexpr (N == 4) {
        const uint4 *vector = reinterpret_cast<const uint4 *>(p);
        const uint4 u = Load == load_once ? __ldcs(vector) : __ldg(vector);
        v.w[0] = u.x, v.w[1] = u.y, v.w[2] = u.z, v.w[3] = u.w;
    } else {
        const uint2 *vector = reinterpret_cast<const uint2 *>(p);
        const uint2 u = Load == load_once ? __ldcs(vector) : __ldg(vector);
        v.w[0] = u.x, v.w[1] = u.y;
    }
    return v;
}

/* Stores N words to an address aligned to all of them. */
template <int N>
__device__ __forceinline__ void store_vector(uint8_t *p, const Words<N> &v)
{
    static_assert(N == 2 || N == 4, "8 or 16 bytes");
    if constexpr (N == 4) {
        *reinterpret_cast<uint4 *>(p) = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]);
    } else {
        *reinterpret_cast<uint2 *>(p) = make_uint2(v.w[0], v.w[1]);
    }
}

/*
 * Loads `count` contiguous codes from any address; the rest is zero. `inside` says that three bytes before and
 * behind 4N codes belong to the same run of codes, so that whole words around them may be read.
 */
template <int N>
__device__ __forceinline__ Words<N> load_codes(const uint8_t *p, int count, bool inside)
{
    Words<N> v;
    const uint32_t offset = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) & 3);
    const uint32_t *words = reinterpret_cast<const uint32_t *>(p - offset);
    if (count == 4 * N && offset == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            v.w[i] = __ldg(words + i);
        }
    } else if (count == 4 * N && inside) {
        uint32_t low = __ldg(words);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const uint32_t high = __ldg(words + i + 1);
            v.w[i] = __funnelshift_r(low, high, 8 * offset);
            low = high;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            v.w[i] = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (4 * i + j < count) {
                    v.w[i] |= static_cast<uint32_t>(__ldg(p + 4 * i + j)) << (8 * j);
                }
            }
        }
    }
    return v;
}

/* Stores the first `count` of 4N codes to any address. */
template <int N>
__device__ __forceinline__ void store_codes(uint8_t *p, const Words<N> &v, int count)
{
    if (count == 4 * N && (reinterpret_cast<uintptr_t>(p) & 3) == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            reinterpret_cast<uint32_t *>(p)[i] = v.w[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            if (i < count) {
                p[i] = static_cast<uint8_t>(v.w[i / 4] >> (8 * (i % 4)));
            }
        }
    }
}

/* Loads the first `count` of N contiguous payload words that are aligned to their elements; the rest is zero. */
template <awq_packing L, int N>
__device__ __forceinline__ Words<N> load_payload(const uint8_t *p, int count)
{
    Words<N> v;
#pragma unroll
    for (int i = 0; i < N; i++) {
        v.w[i] = 0;
        if (i < count) {
            if constexpr (element_bytes(L) == 4) {
                v.w[i] = __ldg(reinterpret_cast<const uint32_t *>(p) + i);
            } else {
                const unsigned short *halves = reinterpret_cast<const unsigned short *>(p) + 2 * i;
                v.w[i] = static_cast<uint32_t>(__ldg(halves)) | static_cast<uint32_t>(__ldg(halves + 1)) << 16;
            }
        }
    }
    return v;
}

template <awq_packing L, int N>
__device__ __forceinline__ void store_payload(uint8_t *p, const Words<N> &v, int count)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i < count) {
            if constexpr (element_bytes(L) == 4) {
                reinterpret_cast<uint32_t *>(p)[i] = v.w[i];
            } else {
                unsigned short *halves = reinterpret_cast<unsigned short *>(p) + 2 * i;
                halves[0] = static_cast<unsigned short>(v.w[i]);
                halves[1] = static_cast<unsigned short>(v.w[i] >> 16);
            }
        }
    }
}

/* ---- invalid codes ---- */

template <int N>
__device__ __forceinline__ bool any_invalid(const Words<N> &v)
{
    uint32_t seen = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        seen |= v.w[i];
    }
    return (seen & high_nibbles) != 0;
}

/* Linear index of code (0, 0) of the matrix this block works on. */
__device__ __forceinline__ uint64_t matrix_index(const Job &job)
{
    return job.first + blockIdx.y * job.batch_step;
}

__device__ __forceinline__ unsigned long long fault_key(uint64_t index, uint8_t code)
{
    return static_cast<unsigned long long>(index) << 8 | code;
}

} // namespace awq_cuda

#endif
