/* Products of float32 matrices by three in bfloat16 on Intel's AMX.
 *
 * A float32 number is a bfloat16 one and a remainder that is nearly one too: x = h + l, to 2^-17 of x. Then
 *
 *     x w  =  xh wh  +  xh wl  +  xl wh  +  (xl wl, below 2^-17 of it, left out)
 *
 * AMX multiplies bfloat16 exactly and adds in float32, some sixteen times as fast as AVX-512 does in float32, so
 * that three products take less than half the time of the one. (G. Henry, P. Tang, A. Heinecke, "Leveraging the
 * bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019, https://arxiv.org/abs/1904.06376)
 */

#ifndef COGNATE_AMX_H
#define COGNATE_AMX_H

#include <limits.h>

#include "panels.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

/* The compiler does not know that tiles are read from memory and written to it. */
#define MEMORY_IS_USED __asm__ volatile("" ::: "memory")

enum {
  PARTS = 2,                   /* of a number in a panel: its high and its low one */
  TILE_PARTS = TILE * STEP,    /* of a tile, which has them of one kind */
  STEP_PARTS = 4 * TILE_PARTS, /* of a panel: two tiles of high parts, two of low ones */
  LEAST_BLOCK = INT_MAX,       /* rows, for the weights to be read anew for each block of them: it was not tried */
};

typedef uint16_t bfloat16, part;

/* Splits 32 numbers into their high and low parts. */
TARGET static inline void split(__m512 first, __m512 second, __m512i *high, __m512i *low) {
  __m512i h = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  __m512i h0 = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16);
  __m512i h1 = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16);
  *high = h;
  *low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(second, _mm512_castsi512_ps(h1)),
                                      _mm512_sub_ps(first, _mm512_castsi512_ps(h0)));
}

/* Two rows of 16 numbers to one of pairs, which is how a tile of weights lies. */
TARGET static inline void pair(__m512i rows, part *pairs) {
  __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(rows));
  __m512i odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(rows, 1));
  _mm512_storeu_si512(pairs, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
}

/* Panels lie one after another, in each its steps of the depth, in each four tiles: high parts of the first
 * half of the panel, of the second, low parts of the first, of the second. */

/* Lays weights (depth, columns) out in panels; rows of them lie a stride apart, and are zero from some depth on. */
TARGET static void pack(const float *weights, size_t depth, size_t columns, size_t stride, size_t zero_from,
                     part *panels) {
  for (size_t column = 0; column < columns; column += PANEL)
    for (size_t start = 0; start < depth; start += STEP, panels += STEP_PARTS)
      for (size_t half = 0; half < 2; half++)
        for (size_t row = 0; row < TILE; row++) {
          const size_t at = start + 2 * row;
          const float *two = weights + at * stride + column + half * TILE;
          __m512i high, low;
          split(at < zero_from ? _mm512_loadu_ps(two) : _mm512_setzero_ps(),
                at + 1 < zero_from ? _mm512_loadu_ps(two + stride) : _mm512_setzero_ps(), &high, &low);
          pair(high, panels + half * TILE_PARTS + row * STEP);
          pair(low, panels + (2 + half) * TILE_PARTS + row * STEP);
        }
}

/* Where in a panel the high parts of a row's first STEP numbers are; those of the next are STEP_PARTS on. */
static inline part *row_of(part *panel, size_t row) { return panel + row / TILE * TILE_PARTS + row % TILE * STEP; }

/* Puts STEP numbers of a row into a panel. */
TARGET static inline void put(__m512 first, __m512 second, part *to) {
  __m512i high, low;
  split(first, second, &high, &low);
  _mm512_storeu_si512(to, high);
  _mm512_storeu_si512(to + 2 * TILE_PARTS, low);
}

/* Lays some rows of the inputs (rows, depth), a panel's or fewer, out in a panel; they lie a stride apart. */
TARGET static inline void pack_rows(const float *inputs, size_t rows, size_t depth, size_t stride, part *panel) {
  for (size_t row = 0; row < rows; row++, inputs += stride) {
    part *to = row_of(panel, row);
    for (size_t at = 0; at < depth; at += STEP, to += STEP_PARTS)
      put(_mm512_loadu_ps(inputs + at), _mm512_loadu_ps(inputs + at + TILE), to);
  }
}

/* Lays rows, a stride apart, out as the columns of weights: the first so many, the rest of the panel zero. */
TARGET static inline void pack_transposed(const float *rows, size_t count, size_t depth, size_t stride, part *panel) {
  uint32_t pairs[2][TILE][TILE] __attribute__((aligned(64)));
  const __m512i column = _mm512_mullo_epi32(
      _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(TILE));
  for (size_t at = 0; at < depth; at += STEP, panel += STEP_PARTS)
    for (size_t half = 0; half < 2; half++) {
      for (size_t i = 0; i < TILE; i++) {
        const size_t row = half * TILE + i;
        __m512i high = _mm512_setzero_si512(), low = high;
        if (row < count)
          split(_mm512_loadu_ps(rows + row * stride + at), _mm512_loadu_ps(rows + row * stride + at + TILE), &high,
                &low);
        _mm512_store_si512(pairs[0][i], high);
        _mm512_store_si512(pairs[1][i], low);
      }
      for (size_t part = 0; part < 2; part++)
        for (size_t i = 0; i < TILE; i++)
          _mm512_storeu_si512(panel + (2 * part + half) * TILE_PARTS + i * STEP,
                              _mm512_i32gather_epi32(column, &pairs[part][0][i], 4));
    }
}

/* Before a thread's products. */
TARGET static void begin_products(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int tile = 0; tile < 8; tile++) {
    config.bytes[tile] = STEP * sizeof(bfloat16);
    config.rows[tile] = TILE;
  }
  MEMORY_IS_USED;
  _tile_loadconfig(&config);
}

/* After them. */
TARGET static inline void end_products(void) { _tile_release(); }

/* Adds the product of a panel of inputs, or of the first half of its rows, by one of weights, over some steps of
 * the depth, to the outputs of their rows and columns, or sets them to it. */
TARGET static inline __attribute__((always_inline)) void multiply(const part *inputs, const part *weights,
                                                               size_t steps, float *outputs, size_t columns,
                                                               int add, const int whole, Ahead ahead) {
  const size_t row = columns * sizeof(float), line = STEP * sizeof(bfloat16);
  float *below = outputs + TILE * columns;
  MEMORY_IS_USED;
  if (add) {
    _tile_loadd(0, outputs, row);
    _tile_loadd(1, outputs + TILE, row);
    if (whole) {
      _tile_loadd(2, below, row);
      _tile_loadd(3, below + TILE, row);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (whole) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (size_t step = 0; step < steps; step++, inputs += STEP_PARTS, weights += STEP_PARTS) {
    _tile_loadd(4, inputs, line);
    _tile_loadd(6, weights + 2 * TILE_PARTS, line);
    _tile_dpbf16ps(0, 4, 6);
    fetch(&ahead);
    _tile_loadd(7, weights + 3 * TILE_PARTS, line);
    _tile_dpbf16ps(1, 4, 7);
    if (whole) {
      _tile_loadd(5, inputs + TILE_PARTS, line);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    fetch(&ahead);
    _tile_loadd(6, weights, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weights + TILE_PARTS, line);
    _tile_dpbf16ps(1, 4, 7);
    fetch(&ahead);
    if (whole) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(4, inputs + 2 * TILE_PARTS, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    fetch(&ahead);
    if (whole) {
      _tile_loadd(5, inputs + 3 * TILE_PARTS, line);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, outputs, row);
  _tile_stored(1, outputs + TILE, row);
  if (whole) {
    _tile_stored(2, below, row);
    _tile_stored(3, below + TILE, row);
  }
  MEMORY_IS_USED;
}

/* The same of a panel that has so many rows, without its second half where it has none there. */
TARGET static inline __attribute__((always_inline)) void multiply_rows_onto(size_t rows, const part *inputs,
                                                                            const part *weights, size_t steps,
                                                                            float *outputs, size_t columns,
                                                                            int add, Ahead ahead) {
  if (rows > TILE)
    multiply(inputs, weights, steps, outputs, columns, add, 1, ahead);
  else
    multiply(inputs, weights, steps, outputs, columns, add, 0, ahead);
}

/* Sets the outputs of the first so many rows of a panel of inputs to their product by a panel of weights. */
TARGET static inline __attribute__((always_inline)) void multiply_rows(size_t rows, const part *inputs,
                                                                       const part *weights, size_t steps,
                                                                       float *outputs, size_t columns,
                                                                       Ahead ahead) {
  multiply_rows_onto(rows, inputs, weights, steps, outputs, columns, 0, ahead);
}

#endif
