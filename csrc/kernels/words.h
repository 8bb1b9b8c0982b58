/* What the x86 kernels share that move words of four codes' bytes, Marlin's and a turned payload's: below avx2.h or
 * avx512.h. */
#ifndef AWQPACK_WORDS_H
#define AWQPACK_WORDS_H

/* Transposes the 4 x 4 words of each 128-bit lane of four vectors. */
static inline void transpose_words(vector v[4])
{
    const vector a = zip32_low(v[0], v[1]), b = zip32_low(v[2], v[3]);
    const vector c = zip32_high(v[0], v[1]), d = zip32_high(v[2], v[3]);
    v[0] = zip64_low(a, b);
    v[1] = zip64_high(a, b);
    v[2] = zip64_low(c, d);
    v[3] = zip64_high(c, d);
}

#endif
