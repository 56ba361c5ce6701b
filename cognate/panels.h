/* What amx.h and avx512.h have in common: the sizes of panels, and memory that is fetched ahead. */

#ifndef COGNATE_PANELS_H
#define COGNATE_PANELS_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
  TILE = 16,                   /* numbers of float32 in a register, and rows of AMX's tiles */
  STEP = 32,                   /* of the depth, of both factors */
  PANEL = 2 * TILE,            /* rows, or columns of weights, that are multiplied together */
  LINE = 64,                   /* bytes that the caches hold together */
};

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Memory that is wanted next: in each quarter of a step, so many lines of it are fetched into the second cache. */
typedef struct {
  const char *line;
  size_t count;
} Ahead;

static inline void fetch(Ahead *ahead) {
  for (size_t i = 0; i < ahead->count; i++, ahead->line += LINE) _mm_prefetch(ahead->line, _MM_HINT_T1);
}

static const Ahead nothing_ahead = {NULL, 0};

#endif
