// Vectors of fp32 and what is done with them: AVX-512 where the processor has it, else AVX2.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WIDE 1
#elif !(defined(__AVX2__) && defined(__FMA__))
#error "needs AVX2 and FMA"
#endif

namespace {

#ifdef WIDE

using Floats = __m512;
using Ints = __m512i;
constexpr int LANES = 16;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats highest(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats lowest(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats nearest(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
inline float sum(Floats a) { return _mm512_reduce_add_ps(a); }
inline float largest(Floats a) { return _mm512_reduce_max_ps(a); }
inline Floats floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Floats as_floats(Ints a) { return _mm512_castsi512_ps(a); }
inline Ints as_ints(Floats a) { return _mm512_castps_si512(a); }
inline Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints left(Ints a, int by) { return _mm512_slli_epi32(a, by); }
inline Ints right(Ints a, int by) { return _mm512_srli_epi32(a, by); }
inline Ints whole(Floats a) { return _mm512_cvtps_epi32(a); }
inline Ints bytes(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline Ints signed_bytes(const void* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline Ints halves(const void* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
inline void store_halves(void* p, Ints a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a)); }

#else

using Floats = __m256;
using Ints = __m256i;
constexpr int LANES = 8;

inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats highest(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats lowest(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats nearest(Floats a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats magnitude(Floats a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline float largest(Floats a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline float sum(Floats a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline Floats floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Floats as_floats(Ints a) { return _mm256_castsi256_ps(a); }
inline Ints as_ints(Floats a) { return _mm256_castps_si256(a); }
inline Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
inline Ints load_ints(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline Ints plus(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints left(Ints a, int by) { return _mm256_slli_epi32(a, by); }
inline Ints right(Ints a, int by) { return _mm256_srli_epi32(a, by); }
inline Ints whole(Floats a) { return _mm256_cvtps_epi32(a); }
inline Ints bytes(const void* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline Ints signed_bytes(const void* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline Ints halves(const void* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline void store_halves(void* p, Ints a) {
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, a), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}

#endif

using bf16 = uint16_t;

inline Floats load(const bf16* p) { return as_floats(left(halves(p), 16)); }

// fp32 whose lower half is what rounding to bf16 (half to even) left over: the upper half is the bf16 number.
inline Ints rounded(Floats x) {
  Ints bits = as_ints(x);
  return plus(bits, plus(all_ints(0x7fff), both(right(bits, 16), all_ints(1))));
}

inline void store(bf16* p, Floats x) { store_halves(p, right(rounded(x), 16)); }

// x as bf16 holds it.
inline Floats through_bf16(Floats x) { return as_floats(both(rounded(x), all_ints(int32_t(0xffff0000)))); }

inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float widen(float x) { return x; }

inline bf16 narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float through_bf16(float x) { return widen(narrow(x)); }

// e^x to the last bit or two of fp32, for x from -87 up; what lies below counts as -87.
inline Floats exponential(Floats x) {
  x = lowest(highest(x, all(-87.0f)), all(88.0f));
  Floats power = nearest(mul(x, all(1.44269504f)));
  Floats rest = fma(power, all(-0.693359375f), x);
  rest = fma(power, all(2.12194440e-4f), rest);
  Floats y = all(1.0f / 720);
  constexpr float factors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float factor : factors) y = fma(y, rest, all(factor));
  return mul(y, as_floats(left(plus(whole(power), all_ints(127)), 23)));
}

}  // namespace
