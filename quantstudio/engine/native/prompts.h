// Many rows of activations times one weight: its codes are expanded tile by tile, in a cache, for all rows at once.
//
// A tile is `WIDTH` rows of the weight with some thousand of their columns; activations are packed once into strips of
// `STRIP` rows, so that the innermost loop reads both in order: `STRIP` times `VECTORS` sums stay in registers.
// (The scheme of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008.)
#pragma once

#include "products.h"

#include <vector>

namespace {

#if defined(WIDE) && defined(__AVX512BF16__)
constexpr int STEP = 2;  // columns to a cell: pairs of bf16
#else
constexpr int STEP = 1;  // fp32
#endif
using Cell = uint32_t;
constexpr int VECTORS = LANES == 16 ? 4 : 2;  // of outputs, beside each other
constexpr int STRIP = 6;
constexpr int WIDTH = VECTORS * LANES;
constexpr int64_t DEEP = 2048;  // columns of a tile

inline Cell bits(float x) {
  Cell found;
  memcpy(&found, &x, 4);
  return found;
}

// Activations bf16 [count, columns]; where they are codes, with a scale for each row, else null.
struct Rows {
  const bf16* rows;
  const bf16* scales;
  int64_t count;
};

// Rows `[strip * STRIP, …)` of the activations, a cell of each beside each other; zeros where there are none.
void pack_strip(const Rows& x, int64_t columns, int64_t strip, Cell* out) {
  for (int row = 0; row < STRIP; row++) {
    const int64_t from = strip * STRIP + row;
    const bf16* p = x.rows + from * columns;
    for (int64_t i = 0; i < (columns + STEP - 1) / STEP; i++) {
      Cell cell = 0;
      if (from < x.count && STEP == 2) memcpy(&cell, p + 2 * i, 2 * i + 1 < columns ? 4 : 2);
      if (from < x.count && STEP == 1) cell = bits(widen(p[i]));
      out[i * STRIP + row] = cell;
    }
  }
}

// `first` and `second` column of a tile's vector, fp32 → cells.
inline void put_cells(Floats first, Floats second, Cell* out) {
#if defined(WIDE) && defined(__AVX512BF16__)
  // The instruction leaves `first` in the lower half; here they lie in turns.
  const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh(second, first)));
#else
  store((float*)out, through_bf16(first));
  store((float*)out + WIDTH, through_bf16(second));
#endif
}

// Rows and columns of an int4 weight, dequantized to bf16 → cells `[columns / STEP, WIDTH]`. Rows in order.
void expand_int4(const Matrix& m, int64_t row, int64_t from, int64_t columns, Cell* out) {
  const int64_t half = 2 * LANES;  // bytes of a column of a block
  const int64_t inside = row % (2 * half);
  const uint8_t* p = m.weights + row / (2 * half) * m.columns * half + from * half;
  const int32_t* pairs = (const int32_t*)m.scales + row + from / m.group * m.padded;
  for (int64_t column = 0; column < columns; column += m.group, pairs += m.padded) {
    for (int v = 0; v < VECTORS; v++) {
      const int64_t place = inside + v * LANES;
      const uint8_t* codes = p + column * half + place % half;
      const int shift = place < half ? 0 : 4;
      const Ints pair = load_ints(pairs + v * LANES);
      const Floats scale = as_floats(left(pair, 16)), zero_point = as_floats(both(pair, all_ints(int32_t(0xffff0000))));
      const auto value = [&](int64_t i) {
        const Ints code = plus(both(right(bytes(codes + i * half), shift), all_ints(15)), all_ints(-8));
        return fma(floats(code), scale, zero_point);
      };
      for (int64_t i = 0; i < m.group; i += 2) {
        put_cells(value(i), value(i + 1), out + (column + i) / STEP * WIDTH + v * LANES);
      }
    }
  }
}

// Likewise of an int8 weight, codes only; rows that there are not are left as they are.
void expand_int8(const Matrix& m, int64_t row, int64_t from, int64_t columns, Cell* out) {
  const int64_t width = m.block + 8;
  for (int v = 0; v < VECTORS && row + v * LANES < m.rows; v++) {
    const int64_t place = row + v * LANES;
    const uint8_t* p = m.weights + (place / m.block * m.columns + from) * width + place % m.block;
    for (int64_t i = 0; i < columns; i += 2, p += 2 * width) {
      const Floats first = sub(floats(bytes(p)), all(128));
      const Floats second = i + 1 < columns ? sub(floats(bytes(p + width)), all(128)) : zero();
      put_cells(first, second, out + i / STEP * WIDTH + v * LANES);
    }
  }
}

inline Floats multiply(Floats sums, Floats weights, Floats x) {
#if defined(WIDE) && defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)x);
#else
  return fma(weights, x, sums);
#endif
}

// A strip times a tile, added to `sums` `[STRIP, WIDTH]`, or instead of what was there.
template <bool ADD>
void multiply_strip(const Cell* x, const Cell* tile, int64_t steps, float* sums) {
  Floats found[STRIP][VECTORS];
  for (int row = 0; row < STRIP; row++) {
    for (int v = 0; v < VECTORS; v++) found[row][v] = ADD ? load(sums + row * WIDTH + v * LANES) : zero();
  }
  for (int64_t i = 0; i < steps; i++, x += STRIP, tile += WIDTH) {
    Floats weights[VECTORS];
    for (int v = 0; v < VECTORS; v++) weights[v] = load((const float*)tile + v * LANES);
    for (int row = 0; row < STRIP; row++) {
      const Floats cell = as_floats(all_ints(int32_t(x[row])));
      for (int v = 0; v < VECTORS; v++) found[row][v] = multiply(found[row][v], weights[v], cell);
    }
  }
  for (int row = 0; row < STRIP; row++) {
    for (int v = 0; v < VECTORS; v++) store(sums + row * WIDTH + v * LANES, found[row][v]);
  }
}

// What becomes of sums: the scales of an int8 weight, and the bias.
struct Finish {
  alignas(64) float scales[WIDTH], biases[WIDTH];
  Finish(const Matrix& m, int64_t row, int64_t rows) {
    for (int64_t i = 0; i < WIDTH; i++) {
      scales[i] = m.bits == 8 && i < rows ? ((const float*)m.scales)[row + i] : 1.0f;
      biases[i] = m.bias && i < rows ? widen(m.bias[row + i]) : 0.0f;
    }
  }
};

// A strip's outputs, `rows` of them from `row` on, rounded; also times the token's scale where it was rounded.
void emit_strip(const Finish& finish, int64_t all_rows, int64_t row, int64_t rows, const float* sums, int64_t strip,
                const Rows& x, bf16* out) {
  for (int64_t i = 0; i < STRIP && strip * STRIP + i < x.count; i++, sums += WIDTH) {
    const Floats token = all(x.scales ? widen(x.scales[strip * STRIP + i]) : 1.0f);
    bf16* y = out + (strip * STRIP + i) * all_rows + row;
    alignas(64) bf16 part[WIDTH];
    bf16* place = rows == WIDTH ? y : part;
    for (int j = 0; j < WIDTH; j += LANES) {
      const Floats scaled = mul(load(sums + j), load(finish.scales + j));
      store(place + j, fma(scaled, token, load(finish.biases + j)));
    }
    if (rows < WIDTH) memcpy(y, part, rows * sizeof(bf16));
  }
}

// What one thread works with: a tile, and the sums of all strips that it is multiplied with.
struct Bench {
  std::vector<Cell> tile;
  std::vector<float> sums;
};

// Outputs from `row` on, `WIDTH` where there are as many, for some strips.
void multiply_tile(const Matrix& m, int64_t row, const Cell* packed, const Share& strips, const Rows& x, Bench& own,
                   bf16* out) {
  const int64_t rows = m.rows - row < WIDTH ? m.rows - row : WIDTH;
  const int64_t deep = m.bits == 4 ? (DEEP > m.group ? DEEP / m.group * m.group : m.group) : DEEP;
  const int64_t cells = (m.columns + STEP - 1) / STEP;
  own.tile.resize((deep + STEP) / STEP * WIDTH);
  own.sums.resize((strips.last - strips.first) * STRIP * WIDTH);
  for (int64_t from = 0; from < m.columns; from += deep) {
    const int64_t columns = m.columns - from < deep ? m.columns - from : deep;
    (m.bits == 4 ? expand_int4 : expand_int8)(m, row, from, columns, own.tile.data());
    const auto add = from ? multiply_strip<true> : multiply_strip<false>;
    for (int64_t strip = strips.first; strip < strips.last; strip++) {
      const Cell* cell = packed + (strip * cells + from / STEP) * STRIP;
      add(cell, own.tile.data(), (columns + STEP - 1) / STEP, own.sums.data() + (strip - strips.first) * STRIP * WIDTH);
    }
  }
  const Finish finish(m, row, rows);
  for (int64_t strip = strips.first; strip < strips.last; strip++) {
    emit_strip(finish, m.rows, row, rows, own.sums.data() + (strip - strips.first) * STRIP * WIDTH, strip, x, out);
  }
}

}  // namespace
