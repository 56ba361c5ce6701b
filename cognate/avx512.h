/* Products of float32 matrices by AVX-512, with the names of amx.h, whose panels they take the place of. */

#ifndef COGNATE_AVX512_H
#define COGNATE_AVX512_H

#include "panels.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define EACH _Pragma("GCC unroll 32")

enum {
  PARTS = 1,                  /* of a number in a panel */
  STEP_PARTS = PANEL * STEP,  /* of a panel */
  ROWS = 12,                  /* whose sums are in registers together, two for each row */
  LEAST_BLOCK = 128,          /* rows, for the weights to be read anew for each block of them */
};

typedef float part;

/* Panels lie one after another, in each its steps of the depth. A step of inputs has STEP numbers of each row, one
 * row after another; one of weights has PANEL numbers of each of its rows, likewise. */

/* Lays weights (depth, columns) out in panels; rows of them lie a stride apart, and are zero from some depth on. */
TARGET static void pack(const float *weights, size_t depth, size_t columns, size_t stride, size_t zero_from,
                        part *panels) {
  for (size_t column = 0; column < columns; column += PANEL)
    for (size_t at = 0; at < depth; at++, panels += PANEL)
      for (size_t half = 0; half < PANEL; half += TILE)
        _mm512_storeu_ps(panels + half, at < zero_from ? _mm512_loadu_ps(weights + at * stride + column + half)
                                                       : _mm512_setzero_ps());
}

/* Where in a panel a row's first STEP numbers are; the next are STEP_PARTS on. */
static inline part *row_of(part *panel, size_t row) { return panel + row * STEP; }

/* Puts STEP numbers of a row into a panel. */
TARGET static inline void put(__m512 first, __m512 second, part *to) {
  _mm512_storeu_ps(to, first);
  _mm512_storeu_ps(to + TILE, second);
}

/* Lays some rows of the inputs (rows, depth), a panel's or fewer, out in a panel; they lie a stride apart. */
TARGET static inline void pack_rows(const float *inputs, size_t rows, size_t depth, size_t stride, part *panel) {
  for (size_t row = 0; row < rows; row++)
    for (size_t at = 0; at < depth; at += STEP)
      memcpy(row_of(panel, row) + at * PANEL, inputs + row * stride + at, STEP * sizeof(float));
}

/* Sixteen rows of sixteen numbers, the columns of them for rows. */
TARGET static inline void transpose(__m512 rows[TILE]) {
  __m512 pairs[TILE], fours[TILE];
  EACH for (int i = 0; i < TILE; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  EACH for (int i = 0; i < TILE; i += 4) {
    EACH for (int j = 0; j < 2; j++) {
      const __m512d a = _mm512_castps_pd(pairs[i + j]), b = _mm512_castps_pd(pairs[i + j + 2]);
      fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  /* fours[4 g + c] has, of the rows 4 g to 4 g + 3, the columns c, 4 + c, 8 + c and 12 + c. */
  EACH for (int c = 0; c < 4; c++) {
    const __m512 even = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xdd);
    const __m512 later_even = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
    const __m512 later_odd = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_f32x4(even, later_even, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(even, later_even, 0xdd);
    rows[4 + c] = _mm512_shuffle_f32x4(odd, later_odd, 0x88);
    rows[12 + c] = _mm512_shuffle_f32x4(odd, later_odd, 0xdd);
  }
}

/* Lays rows, a stride apart, out as the columns of weights: the first so many, the rest of the panel zero. */
TARGET static void pack_transposed(const float *rows, size_t count, size_t depth, size_t stride, part *panel) {
  for (size_t at = 0; at < depth; at += TILE)
    for (size_t half = 0; half < PANEL; half += TILE) {
      __m512 block[TILE];
      EACH for (size_t i = 0; i < TILE; i++)
        block[i] = half + i < count ? _mm512_loadu_ps(rows + (half + i) * stride + at) : _mm512_setzero_ps();
      transpose(block);
      EACH for (size_t i = 0; i < TILE; i++) _mm512_storeu_ps(panel + (at + i) * PANEL + half, block[i]);
    }
}

/* Before and after a thread's products there is nothing to do. */
static inline void begin_products(void) {}
static inline void end_products(void) {}

/* The product of some rows of a panel of inputs by a panel of weights, over some steps of the depth. */
TARGET static inline __attribute__((always_inline)) void multiply(const int rows, const part *inputs,
                                                                  const part *weights, size_t steps,
                                                                  float *outputs, size_t columns, Ahead ahead) {
  __m512 sums[ROWS][2];
  EACH for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
  for (size_t step = 0; step < steps; step++, inputs += STEP_PARTS)
    for (size_t quarter = 0; quarter < STEP; quarter += STEP / 4) {
      fetch(&ahead);
      for (size_t at = quarter; at < quarter + STEP / 4; at++, weights += PANEL) {
        const __m512 first = _mm512_loadu_ps(weights), second = _mm512_loadu_ps(weights + TILE);
        EACH for (int i = 0; i < rows; i++) {
          const __m512 input = _mm512_set1_ps(inputs[i * STEP + at]);
          sums[i][0] = _mm512_fmadd_ps(input, first, sums[i][0]);
          sums[i][1] = _mm512_fmadd_ps(input, second, sums[i][1]);
        }
      }
    }
  EACH for (int i = 0; i < rows; i++) {
    _mm512_storeu_ps(outputs + i * columns, sums[i][0]);
    _mm512_storeu_ps(outputs + i * columns + TILE, sums[i][1]);
  }
}

#define OF_ROWS(COUNT)                                                                                          \
  TARGET static void multiply_##COUNT(const part *inputs, const part *weights, size_t steps, float *outputs,    \
                                      size_t columns, Ahead ahead) {                                            \
    multiply(COUNT, inputs, weights, steps, outputs, columns, ahead);                                           \
  }
OF_ROWS(1) OF_ROWS(2) OF_ROWS(3) OF_ROWS(4) OF_ROWS(5) OF_ROWS(6)
OF_ROWS(7) OF_ROWS(8) OF_ROWS(9) OF_ROWS(10) OF_ROWS(11) OF_ROWS(12)
#undef OF_ROWS

static void (*const multiply_count[ROWS + 1])(const part *, const part *, size_t, float *, size_t, Ahead) = {
    NULL,       multiply_1, multiply_2, multiply_3,  multiply_4,  multiply_5, multiply_6,
    multiply_7, multiply_8, multiply_9, multiply_10, multiply_11, multiply_12};

/* Sets the outputs of the first so many rows of a panel of inputs to their product by a panel of weights. */
TARGET static inline void multiply_rows(size_t rows, const part *inputs, const part *weights, size_t steps,
                                        float *outputs, size_t columns, Ahead ahead) {
  for (size_t groups = (rows + ROWS - 1) / ROWS; groups; groups--) {
    const size_t count = (rows + groups - 1) / groups;
    multiply_count[count](inputs, weights, steps, outputs, columns, ahead);
    ahead = nothing_ahead;
    rows -= count;
    inputs += count * STEP;
    outputs += count * columns;
  }
}

#endif
