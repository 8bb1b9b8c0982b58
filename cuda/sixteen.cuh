/* Sixteen codes that lie beside each other in memory: bytes, or two words of a V1 payload. */
#ifndef AWQPACK_CUDA_SIXTEEN_CUH
#define AWQPACK_CUDA_SIXTEEN_CUH

#include "memory.cuh"

namespace awq_cuda {

constexpr int sixteen = 16;

/* Each has the alignment of its vectors, the bytes from one sixteen to the next beside it, a load and a store. */
struct ByteCodes {
    static constexpr int vector = sixteen;

    static __device__ __forceinline__ int64_t step(const Job &) { return sixteen; }

    /* `inside` as load_codes wants it. */
    static __device__ __forceinline__ Words<4> load(const Job &job, const uint8_t *p, bool inside)
    {
        return load_codes<4>(p, sixteen, inside, job.codes_aligned);
    }
    static __device__ __forceinline__ void store(const Job &job, uint8_t *p, const Words<4> &codes)
    {
        store_codes<4>(p, codes, sixteen, job.codes_aligned);
    }
};

template <awq_packing P>
struct WordCodes {
    static constexpr int vector = 2 * AWQ_WORD_BYTES;

    static __device__ __forceinline__ int64_t step(const Job &) { return vector; }

    static __device__ __forceinline__ Words<4> load(const Job &job, const uint8_t *p, bool)
    {
        return unpack_words<P>(load_payload<P, 2>(p, 2, job.codes_aligned));
    }
    static __device__ __forceinline__ void store(const Job &job, uint8_t *p, const Words<4> &codes)
    {
        store_payload<P, 2>(p, pack_words<P>(codes), 2, job.codes_aligned);
    }
};

/* Of a payload viewed transposed, where the words of a row lie codes_col apart. */
template <awq_packing P>
struct TurnedWordCodes {
    static constexpr int vector = AWQ_WORD_BYTES;

    static __device__ __forceinline__ int64_t step(const Job &job) { return 2 * job.codes_col; }

    static __device__ __forceinline__ Words<4> load(const Job &job, const uint8_t *p, bool)
    {
        return unpack_words<P>({{load_payload<P, 1>(p, 1).w[0], load_payload<P, 1>(p + job.codes_col, 1).w[0]}});
    }
    static __device__ __forceinline__ void store(const Job &job, uint8_t *p, const Words<4> &codes)
    {
        const Words<2> words = pack_words<P>(codes);
        store_payload<P, 1>(p, {{words.w[0]}}, 1);
        store_payload<P, 1>(p + job.codes_col, {{words.w[1]}}, 1);
    }
};

} // namespace awq_cuda

#endif
