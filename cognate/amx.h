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

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

/* The compiler does not know that tiles are read from memory and written to it. */
#define MEMORY_IS_USED __asm__ volatile("" ::: "memory")

enum {
  TILE = 16,                   /* rows of a tile, and columns of float32 */
  STEP = 32,                   /* columns of bfloat16 in a tile */
  PANEL = 2 * TILE,            /* rows, or columns of weights, that are multiplied together */
  PART = TILE * STEP,          /* numbers in a tile of bfloat16 */
  STEP_PARTS = 4 * PART,       /* of a panel: two tiles of high parts, two of low ones */
};

typedef uint16_t bfloat16;

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Splits 32 numbers into their high and low parts. */
AMX static inline void split(__m512 first, __m512 second, __m512i *high, __m512i *low) {
  __m512i h = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  __m512i h0 = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16);
  __m512i h1 = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16);
  *high = h;
  *low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(second, _mm512_castsi512_ps(h1)),
                                      _mm512_sub_ps(first, _mm512_castsi512_ps(h0)));
}

/* Two rows of 16 numbers to one of pairs, which is how a tile of weights lies. */
AMX static inline void pair(__m512i rows, bfloat16 *pairs) {
  __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(rows));
  __m512i odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(rows, 1));
  _mm512_storeu_si512(pairs, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
}

/* Panels lie one after another, in each its steps of the depth, in each four tiles: high parts of the first
 * half of the panel, of the second, low parts of the first, of the second. */

/* Lays weights (depth, columns) out in panels; rows of them lie a stride apart, and are zero from some depth on. */
AMX static void pack(const float *weights, size_t depth, size_t columns, size_t stride, size_t zero_from,
                     bfloat16 *panels) {
  for (size_t column = 0; column < columns; column += PANEL)
    for (size_t start = 0; start < depth; start += STEP, panels += STEP_PARTS)
      for (size_t half = 0; half < 2; half++)
        for (size_t row = 0; row < TILE; row++) {
          const size_t at = start + 2 * row;
          const float *two = weights + at * stride + column + half * TILE;
          __m512i high, low;
          split(at < zero_from ? _mm512_loadu_ps(two) : _mm512_setzero_ps(),
                at + 1 < zero_from ? _mm512_loadu_ps(two + stride) : _mm512_setzero_ps(), &high, &low);
          pair(high, panels + half * PART + row * STEP);
          pair(low, panels + (2 + half) * PART + row * STEP);
        }
}

/* Where in a panel the high parts of a row's first STEP numbers are; those of the next are STEP_PARTS on. */
static inline bfloat16 *row_of(bfloat16 *panel, size_t row) { return panel + row / TILE * PART + row % TILE * STEP; }

/* Puts STEP numbers of a row into a panel. */
AMX static inline void put(__m512 first, __m512 second, bfloat16 *to) {
  __m512i high, low;
  split(first, second, &high, &low);
  _mm512_storeu_si512(to, high);
  _mm512_storeu_si512(to + 2 * PART, low);
}

/* Lays some rows of the inputs (rows, depth), a panel's or fewer, out in a panel; they lie a stride apart. */
AMX static inline void pack_rows(const float *inputs, size_t rows, size_t depth, size_t stride, bfloat16 *panel) {
  for (size_t row = 0; row < rows; row++, inputs += stride) {
    bfloat16 *to = row_of(panel, row);
    for (size_t at = 0; at < depth; at += STEP, to += STEP_PARTS)
      put(_mm512_loadu_ps(inputs + at), _mm512_loadu_ps(inputs + at + TILE), to);
  }
}

AMX static void configure_tiles(void) {
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

/* Memory that is wanted next: in each quarter of a step, so many lines of it are fetched into the second cache. */
typedef struct {
  const char *line;
  size_t count;
} Ahead;

enum { LINE = 64 /* bytes that the caches hold together */ };

static inline void fetch(Ahead *ahead) {
  for (size_t i = 0; i < ahead->count; i++, ahead->line += LINE) _mm_prefetch(ahead->line, _MM_HINT_T1);
}

static const Ahead nothing_ahead = {NULL, 0};

/* Adds the product of a panel of inputs, or of the first half of its rows, by one of weights, over some steps of
 * the depth, to the outputs of their rows and columns, or sets them to it. */
AMX static inline __attribute__((always_inline)) void multiply(const bfloat16 *inputs, const bfloat16 *weights,
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
    _tile_loadd(6, weights + 2 * PART, line);
    _tile_dpbf16ps(0, 4, 6);
    fetch(&ahead);
    _tile_loadd(7, weights + 3 * PART, line);
    _tile_dpbf16ps(1, 4, 7);
    if (whole) {
      _tile_loadd(5, inputs + PART, line);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    fetch(&ahead);
    _tile_loadd(6, weights, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weights + PART, line);
    _tile_dpbf16ps(1, 4, 7);
    fetch(&ahead);
    if (whole) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(4, inputs + 2 * PART, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    fetch(&ahead);
    if (whole) {
      _tile_loadd(5, inputs + 3 * PART, line);
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
AMX static inline __attribute__((always_inline)) void multiply_rows(size_t rows, const bfloat16 *inputs,
                                                                    const bfloat16 *weights, size_t steps,
                                                                    float *outputs, size_t columns, int add,
                                                                    Ahead ahead) {
  if (rows > TILE)
    multiply(inputs, weights, steps, outputs, columns, add, 1, ahead);
  else
    multiply(inputs, weights, steps, outputs, columns, add, 0, ahead);
}

#endif
