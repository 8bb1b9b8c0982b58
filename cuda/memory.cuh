/* Loads and stores of codes and of payload at any alignment, and at that of vectors. */
#ifndef AWQPACK_CUDA_MEMORY_CUH
#define AWQPACK_CUDA_MEMORY_CUH

#include "common.cuh"

namespace awq_cuda {

/* Loads N words from an address aligned to all of them. */
template <int N>
__device__ __forceinline__ Words<N> load_vector(const uint8_t *p)
{
    static_assert(N == 2 || N == 4, "8 or 16 bytes");
    if constexpr (N == 4) {
        const uint4 u = __ldg(reinterpret_cast<const uint4 *>(p));
        return {{u.x, u.y, u.z, u.w}};
    } else {
        const uint2 u = __ldg(reinterpret_cast<const uint2 *>(p));
        return {{u.x, u.y}};
    }
}

/* Loads a word of memory that is read from front to back: L2 brings 256 bytes at once. For payload alone: wide loads of
   weights took longer that way on an H200. */
__device__ __forceinline__ uint32_t load_along(const uint8_t *p)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t word;
    asm("ld.global.nc.L2::256B.u32 %0, [%1];" : "=r"(word) : "l"(p));
    return word;
#else
    return __ldg(reinterpret_cast<const uint32_t *>(p));
#endif
}

/* Stores N words to an address aligned to all of them. Not as a stream, which L2 forgets first: it saved up to 1 %, and
   took 4 to 10 % from who reads 32 MiB of weights next. */
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

/* The same two where all is whole vectors, aligned to their size, if `aligned` says so. */
template <int N>
__device__ __forceinline__ Words<N> load_codes(const uint8_t *p, int count, bool inside, bool aligned)
{
    return aligned && count == 4 * N ? load_vector<N>(p) : load_codes<N>(p, count, inside);
}

template <int N>
__device__ __forceinline__ void store_codes(uint8_t *p, const Words<N> &v, int count, bool aligned)
{
    if (aligned && count == 4 * N) {
        store_vector<N>(p, v);
    } else {
        store_codes<N>(p, v, count);
    }
}

/* Loads the first `count` of N contiguous payload words that are aligned to their items; the rest is zero. */
template <awq_packing P, int N>
__device__ __forceinline__ Words<N> load_payload(const uint8_t *p, int count)
{
    Words<N> v;
#pragma unroll
    for (int i = 0; i < N; i++) {
        v.w[i] = 0;
        if (i < count) {
            if constexpr (item_bytes<P> == 4) {
                v.w[i] = __ldg(reinterpret_cast<const uint32_t *>(p) + i);
            } else {
                const unsigned short *halves = reinterpret_cast<const unsigned short *>(p) + 2 * i;
                v.w[i] = static_cast<uint32_t>(__ldg(halves)) | static_cast<uint32_t>(__ldg(halves + 1)) << 16;
            }
        }
    }
    return v;
}

template <awq_packing P, int N>
__device__ __forceinline__ void store_payload(uint8_t *p, const Words<N> &v, int count)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i < count) {
            if constexpr (item_bytes<P> == 4) {
                reinterpret_cast<uint32_t *>(p)[i] = v.w[i];
            } else {
                unsigned short *halves = reinterpret_cast<unsigned short *>(p) + 2 * i;
                halves[0] = static_cast<unsigned short>(v.w[i]);
                halves[1] = static_cast<unsigned short>(v.w[i] >> 16);
            }
        }
    }
}

template <awq_packing P, int N>
__device__ __forceinline__ Words<N> load_payload(const uint8_t *p, int count, bool aligned)
{
    return aligned && count == N ? load_vector<N>(p) : load_payload<P, N>(p, count);
}

template <awq_packing P, int N>
__device__ __forceinline__ void store_payload(uint8_t *p, const Words<N> &v, int count, bool aligned)
{
    if (aligned && count == N) {
        store_vector<N>(p, v);
    } else {
        store_payload<P, N>(p, v, count);
    }
}

} // namespace awq_cuda

#endif
