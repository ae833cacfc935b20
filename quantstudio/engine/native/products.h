// One row of activations times weights of 4, 8 or 16 bits, in the layouts of this program's kernels for CPUs.
#pragma once

#include "vectors.h"

// What Python hands over; `structs.py` has the same fields.
struct Matrix {
  // 4 bits: [rows / block, columns, block / 2]; 8: [blocks, columns, block + 8]; 16: bf16 [rows, columns].
  const uint8_t* weights;
  // 4 bits: bf16 (scale, zero) [groups, rows rounded up to 64, 2]; 8: fp32 [rows].
  const void* scales;
  const uint16_t* bias;  // bf16 [rows], or null
  int64_t rows, columns, padded, group, block;
  int32_t bits, rounds_input;
};

namespace {

constexpr int FAR = 2048, NEAR = 256;  // how many bytes ahead weights are fetched: streams of 2 and of 5 lines a step
constexpr int MOST_ROWS = 256;  // in a block
constexpr int PART = 32;        // columns whose sum is kept; groups are multiples of it

constexpr float TINY = 1.17549435e-38f;  // the least scale

// A thread's part of `count` things.
struct Share {
  int64_t first, last;
  Share(int64_t count, int64_t thread, int64_t threads)
      : first(count * thread / threads), last(count * (thread + 1) / threads) {}
};

// A row of activations as the products want it.
struct Row {
  bf16* narrow;   // [columns]
  float* wide;    // [columns]
  float* sums;    // of each `PART` columns
  float total;
  float scale;    // what sums are multiplied by: the token's, where it was rounded to int8
};

struct Input {
  Row plain, rounded;
};

template <int AHEAD>
inline void fetch(const void* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char*)p + AHEAD + i, _MM_HINT_T0);
}

// `wide` is given; everything else follows from it.
void complete(Row& row, int64_t columns) {
  row.total = 0;
  int64_t i = 0;
  for (; i + PART <= columns; i += PART) {
    Floats part = zero();
    for (int j = 0; j < PART; j += LANES) {
      Floats x = load(row.wide + i + j);
      store(row.narrow + i + j, x);
      part = add(part, x);
    }
    row.total += row.sums[i / PART] = sum(part);
  }
  for (; i < columns; i++) {
    row.narrow[i] = narrow(row.wide[i]);
    row.total += row.wide[i];
  }
}

template <typename Number>
float largest_magnitude(const Number* x, int64_t count) {
  Floats some = zero();
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) some = highest(some, magnitude(load(x + i)));
  float most = largest(some);
  for (; i < count; i++) most = most > __builtin_fabsf(widen(x[i])) ? most : __builtin_fabsf(widen(x[i]));
  return most;
}

// int8 codes for a token, in bf16 arithmetic throughout: `kernels.activations`.
void round_to_int8(const Row& plain, Row& rounded, int64_t columns) {
  float scale = through_bf16(largest_magnitude(plain.wide, columns) / 127.5f);
  scale = scale > TINY ? scale : TINY;
  for (int64_t i = 0; i < columns; i += LANES) {  // what lies behind the row's end is not used
    const Floats x = through_bf16(div(load(plain.wide + i), all(scale)));
    store(rounded.wide + i, nearest(lowest(highest(x, all(-128)), all(127))));
  }
  rounded.scale = scale;
  complete(rounded, columns);
}

inline float group_sum(const Row& row, int64_t group, int64_t size) {
  float total = 0;
  for (int64_t i = group * size / PART; i < (group + 1) * size / PART; i++) total += row.sums[i];
  return total;
}

#if defined(WIDE) && defined(__AVX512BF16__)

// Two columns at once: nibbles of both side by side become bf16 codes by a table, products of pairs are summed in fp32.
struct Nibbles {
  __m512i table;
  Nibbles() {
    alignas(64) bf16 codes[32];
    for (int i = 0; i < 32; i++) codes[i] = narrow(float(i % 16 - 8));  // indices keep a bit of the nibble beside them
    table = _mm512_load_si512(codes);
  }
  static constexpr float OFFSET = 0;
  // Rows as the halves of 128-bit lanes left them → in order.
  static void in_order(Floats sums[4]) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int i = 0; i < 4; i += 2) {
      Floats low = _mm512_permutex2var_ps(sums[i], first, sums[i + 1]);
      sums[i + 1] = _mm512_permutex2var_ps(sums[i], second, sums[i + 1]);
      sums[i] = low;
    }
  }
  inline void two_columns(const uint8_t* p, const Row& row, int64_t column, Floats sums[4]) const {
    __m512i even = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
    __m512i odd = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(p + 32)));
    int32_t pair;
    memcpy(&pair, row.narrow + column, 4);
    __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
    __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
    __m512i parts[4] = {low, high, _mm512_srli_epi16(low, 4), _mm512_srli_epi16(high, 4)};
    for (int i = 0; i < 4; i++) {
      sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_permutexvar_epi16(parts[i], table), x);
    }
  }
};

#else

struct Nibbles {
  static constexpr float OFFSET = 8;  // codes are summed as 0…15
  static void in_order(Floats*) {}
  inline void two_columns(const uint8_t* p, const Row& row, int64_t column, Floats sums[4]) const {
    for (int i = 0; i < 2; i++, p += 2 * LANES) {
      Floats x = all(row.wide[column + i]);
      Ints first = bytes(p), second = bytes(p + LANES);
      sums[0] = fma(floats(both(first, all_ints(15))), x, sums[0]);
      sums[1] = fma(floats(both(second, all_ints(15))), x, sums[1]);
      sums[2] = fma(floats(right(first, 4)), x, sums[2]);
      sums[3] = fma(floats(right(second, 4)), x, sums[3]);
    }
  }
};

#endif

// Rows `block * 4 * LANES` and following.
void int4_block(const Matrix& m, int64_t block, const Row& row, float* out) {
  static const Nibbles nibbles;
  const uint8_t* p = m.weights + block * m.columns * 2 * LANES;
  const int32_t* pairs = (const int32_t*)m.scales + block * 4 * LANES;
  Floats sums[4] = {zero(), zero(), zero(), zero()};
  for (int64_t group = 0; group < m.columns / m.group; group++, pairs += m.padded) {
    Floats even[4] = {zero(), zero(), zero(), zero()}, odd[4] = {zero(), zero(), zero(), zero()};
    for (int64_t column = group * m.group; column < (group + 1) * m.group; column += 4, p += 8 * LANES) {
      fetch<FAR>(p, 8 * LANES);
      nibbles.two_columns(p, row, column, even);
      nibbles.two_columns(p + 4 * LANES, row, column + 2, odd);
    }
    for (int i = 0; i < 4; i++) even[i] = add(even[i], odd[i]);
    Nibbles::in_order(even);
    Floats inputs = all(group_sum(row, group, m.group));
    for (int i = 0; i < 4; i++) {
      Ints pair = load_ints(pairs + i * LANES);
      Floats scale = as_floats(left(pair, 16)), zero_point = as_floats(both(pair, all_ints(int32_t(0xffff0000))));
      if (Nibbles::OFFSET != 0) zero_point = fma(scale, all(-Nibbles::OFFSET), zero_point);
      sums[i] = fma(even[i], scale, fma(zero_point, inputs, sums[i]));
    }
  }
  for (int i = 0; i < 4; i++) store(out + i * LANES, sums[i]);
}

template <int VECTORS>
void int8_rows(const uint8_t* p, int64_t columns, int64_t width, const Row& row, float* out) {
  Floats sums[VECTORS];
  for (int i = 0; i < VECTORS; i++) sums[i] = zero();
  for (int64_t column = 0; column < columns; column++, p += width) {
    fetch<NEAR>(p, VECTORS * LANES);
    Floats x = all(row.wide[column]);
    for (int i = 0; i < VECTORS; i++) sums[i] = fma(floats(bytes(p + i * LANES)), x, sums[i]);
  }
  for (int i = 0; i < VECTORS; i++) store(out + i * LANES, sub(sums[i], all(128 * row.total)));
}

constexpr int SLICE = LANES == 16 ? 16 : 8;  // vectors of sums at once: half of the registers

// By their number of vectors.
constexpr void (*int8_slices[])(const uint8_t*, int64_t, int64_t, const Row&, float*) = {
    nullptr,       int8_rows<1>,  int8_rows<2>,  int8_rows<3>,  int8_rows<4>,  int8_rows<5>,
    int8_rows<6>,  int8_rows<7>,  int8_rows<8>,  int8_rows<9>,  int8_rows<10>, int8_rows<11>,
    int8_rows<12>, int8_rows<13>, int8_rows<14>, int8_rows<15>, int8_rows<16>};

void int8_block(const Matrix& m, int64_t block, const Row& row, float* out) {
  const int64_t width = m.block + 8;
  const uint8_t* p = m.weights + block * m.columns * width;
  const float* scales = (const float*)m.scales + block * m.block;
  for (int64_t first = 0; first < m.block; first += SLICE * LANES) {
    const int64_t vectors = (m.block - first) / LANES;
    const auto rows = int8_slices[vectors < SLICE ? vectors : SLICE];
    rows(p + first, m.columns, width, row, out + first);
  }
  for (int64_t i = 0; i < m.block && block * m.block + i < m.rows; i++) out[i] *= scales[i];
}

void bf16_block(const Matrix& m, int64_t block, const Row& row, float* out) {
  for (int64_t i = 0; i < m.block && block * m.block + i < m.rows; i++) {
    const bf16* p = (const bf16*)m.weights + (block * m.block + i) * m.columns;
    Floats first = zero(), second = zero();
    int64_t column = 0;
    for (; column + 2 * LANES <= m.columns; column += 2 * LANES) {
      fetch<FAR>(p + column, 4 * LANES);
      first = fma(load(p + column), load(row.wide + column), first);
      second = fma(load(p + column + LANES), load(row.wide + column + LANES), second);
    }
    out[i] = sum(add(first, second));
    for (; column < m.columns; column++) out[i] += widen(p[column]) * row.wide[column];
  }
}

// Sums of a block, times the token's scale, plus the bias: rounded, into `out`, or added to what is there.
template <bool ADD>
void emit(const Matrix& m, int64_t first, const float* sums, const Row& row, bf16* out) {
  const int64_t count = m.rows - first < m.block ? m.rows - first : m.block;
  for (int64_t i = 0; i < count; i++) {
    float y = sums[i] * row.scale + (m.bias ? widen(m.bias[first + i]) : 0.0f);
    out[first + i] = ADD ? narrow(widen(out[first + i]) + through_bf16(y)) : narrow(y);
  }
}

// This thread's share of what some matrices, which read the same input, make of it; their outputs lie side by side.
template <bool ADD>
void product(const Matrix* matrices, int count, const Input& input, bf16* out, int thread, int threads) {
  int64_t total = 0;
  for (int i = 0; i < count; i++) total += (matrices[i].rows + matrices[i].block - 1) / matrices[i].block;
  const Share own(total, thread, threads);
  int64_t before = 0;
  for (int i = 0; i < count; i++) {
    const Matrix& m = matrices[i];
    const Row& row = m.rounds_input ? input.rounded : input.plain;
    const int64_t blocks = (m.rows + m.block - 1) / m.block;
    const auto sums = m.bits == 4 ? int4_block : m.bits == 8 ? int8_block : bf16_block;
    const int64_t start = own.first > before ? own.first - before : 0;
    for (int64_t block = start; block < blocks && block + before < own.last; block++) {
      alignas(64) float found[MOST_ROWS];
      sums(m, block, row, found);
      emit<ADD>(m, block * m.block, found, row, out);
    }
    before += blocks;
    out += m.rows;
  }
}

}  // namespace
