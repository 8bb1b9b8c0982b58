/* Sixteen codes that lie beside each other in memory: bytes, or two words of a V1 payload. */
#ifndef AWQPACK_CUDA_SIXTEEN_CUH
#define AWQPACK_CUDA_SIXTEEN_CUH

#include "common.cuh"

namespace awq_cuda {

constexpr int sixteen = 16;

struct ByteCodes {
    static constexpr int bytes = sixteen; /* of memory */

    /* `inside` as load_codes wants it. */
    static __device__ __forceinline__ Words<4> load(const uint8_t *p, bool aligned, bool inside)
    {
        return aligned ? load_vector<4>(p) : load_codes<4>(p, sixteen, inside);
    }
    static __device__ __forceinline__ void store(uint8_t *p, const Words<4> &codes, bool aligned)
    {
        if (aligned) {
            store_vector<4>(p, codes);
        } else {
            store_codes<4>(p, codes, sixteen);
        }
    }
};

template <awq_packing P>
struct WordCodes {
    static_assert(has_row_words<P> && block_items<P> == 1, "a word is a block");
    static constexpr int bytes = 2 * AWQ_WORD_BYTES;

    static __device__ __forceinline__ Words<4> load(const uint8_t *p, bool aligned, bool)
    {
        const Words<2> words = aligned ? load_vector<2>(p) : load_payload<P, 2>(p, 2);
        Words<4> codes;
        unpack_word<P>(words.w[0], &codes.w[0], &codes.w[1]);
        unpack_word<P>(words.w[1], &codes.w[2], &codes.w[3]);
        return codes;
    }
    static __device__ __forceinline__ void store(uint8_t *p, const Words<4> &codes, bool aligned)
    {
        const Words<2> words = {{pack_word<P>(codes.w[0], codes.w[1]), pack_word<P>(codes.w[2], codes.w[3])}};
        if (aligned) {
            store_vector<2>(p, words);
        } else {
            store_payload<P, 2>(p, words, 2);
        }
    }
};

} // namespace awq_cuda

#endif
