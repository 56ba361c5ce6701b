/* All layers of a BERT-like encoder in one operator for onnxruntime.
 *
 * Its products are those of amx.h or avx512.h, whichever is included before it: bert_layers_amx.c and
 * bert_layers_avx512.c do that.
 *
 * A graph of single operators leaves the cores waiting: for a short text onnxruntime takes as long from operator to
 * operator as the products take, and writes and reads what could stay in the processor's cache. Here a run goes
 * from one step to the next without leaving the threads it has. And it multiplies the tokens of the texts alone:
 * padding costs nothing.
 *
 * Of normalised embeddings x, each layer makes (A. Vaswani et al., "Attention Is All You Need", 2017; J. Devlin et
 * al., "BERT", 2018)
 *
 *     y = normalised(x + attention(x));  x = normalised(y + narrow(gelu(wide(y))))
 *
 * cognate/bert_layers.py says which graphs have such layers, and puts the operator into them.
 */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "onnxruntime_operator.h"

enum {
  INPUTS_OF_LAYER = 16,
  FIRST_WEIGHTS = 4,          /* of a layer: before are the embeddings, the mask, and how those are normalised */
  MOST_LAYERS = 64,
  MOST_THREADS = 16,          /* of a run */
  CACHED_INPUTS = 192 * 1024, /* numbers of the inputs that all columns are multiplied by before the next: 768 KB */
  NORM_ROWS = 8,              /* of a task */
  TASKS_OF_THREAD = 3,
  SPINS = 4096,               /* looks at whether the others are done, before the core is offered to them */
};

/* ---- The model ---- */

typedef struct {
  part *qkv, *out, *wide, *narrow; /* panels of weights */
  float *qkv_bias, *out_bias, *wide_bias, *narrow_bias;
  float *first_scale, *first_shift, *second_scale, *second_shift;
} Layer;

/* The layers of a model, shared by the sessions whose weights are in the same memory. */
typedef struct Layers {
  struct Layers *next;
  const void *source;
  size_t users, count, hidden, wide;
  void *memory;
  const float *scale, *shift; /* of the embeddings */
  Layer layer[MOST_LAYERS];
} Layers;

/* What a session has. */
typedef struct {
  Layers *layers;
  size_t heads, threads;
  float epsilon;
} Model;

/* ---- A run ---- */

enum Step { EMBEDDINGS_NORM, QKV, ATTENTION, OUT, FIRST_NORM, WIDE, NARROW, SECOND_NORM, STEPS_OF_LAYER = SECOND_NORM };

typedef struct {
  atomic_size_t next, done; /* tasks that were begun, and ended */
} Progress;

typedef struct {
  const Model *model;
  const float *embeddings; /* (texts, length, hidden) */
  float *outputs;       /* likewise */
  size_t texts, length, rows, longest;
  size_t *begin;        /* of each text, the first of its rows, and the end of the last */
  size_t *place;        /* of each row, in embeddings and outputs */
  float *x, *y, *qkv;   /* (rows, hidden), (rows, hidden), (rows, 3 hidden) */
  part *panels;     /* of the inputs of the next product */
  part *wide_panels;
  char *scratch;        /* of each thread */
  size_t scratch_size;
  Progress progress[1 + MOST_LAYERS * STEPS_OF_LAYER];
} Run;

static size_t rounded_up(size_t number, size_t multiple) { return (number + multiple - 1) / multiple * multiple; }

/* The first so many of 16 numbers. */
static inline __mmask16 first_lanes(size_t count) { return (__mmask16)((1u << least(TILE, count)) - 1); }

/* e^x for x <= 0, to 2e-7 of it. */
TARGET static inline __m512 exponential(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.f / 720);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
  return _mm512_scalef_ps(p, n);
}

/* x (1 + erf(x / sqrt 2)) / 2, with erfc to 1.5e-7 by M. Abramowitz, I. Stegun, "Handbook of Mathematical
 * Functions", 7.1.26. */
TARGET static inline __m512 gelu(__m512 x) {
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f)), one = _mm512_set1_ps(1);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 minus_square = _mm512_mul_ps(z, _mm512_sub_ps(_mm512_setzero_ps(), z));
  const __m512 erfc = _mm512_mul_ps(_mm512_mul_ps(p, t), exponential(minus_square));
  const __m512 part = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), erfc);
  return _mm512_mask_sub_ps(part, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), x, part);
}

/* Normalises rows of y, or first of the embeddings, into x and the next product's inputs, or last into the outputs. */
TARGET static void normalise(const Run *run, size_t task, const float *scale, const float *shift, int first, int last) {
  const size_t hidden = run->model->layers->hidden, end = least(run->rows, (task + 1) * NORM_ROWS);
  for (size_t row = task * NORM_ROWS; row < end; row++) {
    const float *y = first ? run->embeddings + run->place[row] * hidden : run->y + row * hidden;
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (size_t i = 0; i < hidden; i += TILE) sum = _mm512_add_ps(sum, _mm512_loadu_ps(y + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)hidden);
    for (size_t i = 0; i < hidden; i += TILE) {
      const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(y + i), mean);
      squares = _mm512_fmadd_ps(d, d, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / (float)hidden;
    const __m512 by = _mm512_div_ps(_mm512_set1_ps(1), _mm512_sqrt_ps(_mm512_set1_ps(variance + run->model->epsilon)));
    float *x = last ? run->outputs + run->place[row] * hidden : run->x + row * hidden;
    part *to = row_of(run->panels + row / PANEL * PANEL * hidden * PARTS, row % PANEL);
    for (size_t i = 0; i < hidden; i += STEP, to += STEP_PARTS) {
      __m512 two[2];
      for (size_t half = 0; half < 2; half++) {
        const size_t at = i + half * TILE;
        const __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(y + at), mean), by);
        two[half] = _mm512_fmadd_ps(d, _mm512_loadu_ps(scale + at), _mm512_loadu_ps(shift + at));
        _mm512_storeu_ps(x + at, two[half]);
      }
      if (!last) put(two[0], two[1], to);
    }
  }
}

/* Rows that are multiplied by all columns before the next. */
static size_t block_rows(size_t depth) {
  const size_t rows = CACHED_INPUTS / depth / PANEL * PANEL;
  return rows ? rows : PANEL;
}

/* Panels of weights that a task multiplies by. Of few rows there are three tasks for each thread, if that divides
 * them: weights come from memory the sooner, the more of them lie one after another. */
static size_t panels_of_task(const Run *run, size_t columns) {
  const size_t panels = columns / PANEL, tasks = TASKS_OF_THREAD * run->model->threads;
  return run->rows <= PANEL && panels > tasks && panels % tasks == 0 ? panels / tasks : 1;
}

static size_t product_tasks(const Run *run, size_t depth, size_t columns) {
  const size_t block = block_rows(depth);
  return (run->rows + block - 1) / block * (columns / PANEL / panels_of_task(run, columns));
}

/* A block of rows by one panel of the weights, and what the step does with the sums. */
TARGET static inline __attribute__((always_inline)) void multiply_panel(const Run *run, size_t panel, enum Step step,
                                                                        const part *inputs, size_t depth,
                                                                        const part *weights, size_t columns,
                                                                        const float *bias) {
  const size_t hidden = run->model->layers->hidden, panels = columns / PANEL;
  const size_t column = panel % panels * PANEL, begin = panel / panels * block_rows(depth);
  const size_t end = least(run->rows, begin + block_rows(depth));
  float sums[PANEL * PANEL] __attribute__((aligned(64)));
  const __m512 first_bias = _mm512_loadu_ps(bias + column), second_bias = _mm512_loadu_ps(bias + column + TILE);
  /* The queries are divided by the root of a head's size. */
  const __m512 by = _mm512_set1_ps(
      step == QKV && column < hidden ? 1 / __builtin_sqrtf((float)(hidden / run->model->heads)) : 1);
  weights += column * depth * PARTS;
  /* While these rows are multiplied, the next panel of weights comes: a part of it with each panel of rows. */
  Ahead ahead = {(const char *)(weights + depth * PANEL * PARTS), 0};
  const size_t lines = PANEL * depth * PARTS * sizeof(part) / LINE, passes = (end - begin + PANEL - 1) / PANEL;
  if (passes > 1) ahead.count = (lines + 4 * passes * (depth / STEP) - 1) / (4 * passes * (depth / STEP));
  for (size_t row = begin; row < end; row += PANEL) {
    const size_t rows = least(PANEL, end - row);
    multiply_rows(rows, inputs + row * depth * PARTS, weights, depth / STEP, sums, PANEL, ahead);
    ahead.line += 4 * ahead.count * (depth / STEP) * LINE;
    for (size_t i = 0; i < rows; i++) {
      __m512 first = _mm512_add_ps(_mm512_load_ps(sums + i * PANEL), first_bias);
      __m512 second = _mm512_add_ps(_mm512_load_ps(sums + i * PANEL + TILE), second_bias);
      if (step == QKV) {
        float *to = run->qkv + (row + i) * columns + column;
        _mm512_storeu_ps(to, _mm512_mul_ps(first, by));
        _mm512_storeu_ps(to + TILE, _mm512_mul_ps(second, by));
      } else if (step == WIDE) {
        put(gelu(first), gelu(second),
            row_of(run->wide_panels + row * columns * PARTS, i) + column / STEP * STEP_PARTS);
      } else {
        const size_t at = (row + i) * columns + column;
        _mm512_storeu_ps(run->y + at, _mm512_add_ps(first, _mm512_loadu_ps(run->x + at)));
        _mm512_storeu_ps(run->y + at + TILE, _mm512_add_ps(second, _mm512_loadu_ps(run->x + at + TILE)));
      }
    }
  }
}

TARGET static inline __attribute__((always_inline)) void product(const Run *run, size_t task, enum Step step,
                                                                 const part *inputs, size_t depth,
                                                                 const part *weights, size_t columns,
                                                                 const float *bias) {
  const size_t count = panels_of_task(run, columns);
  for (size_t i = 0; i < count; i++)
    multiply_panel(run, task * count + i, step, inputs, depth, weights, columns, bias);
}

/* The bytes that a head's attention calculates in. */
static size_t attention_bytes(size_t tokens, size_t size) {
  const size_t keys = rounded_up(tokens, PANEL);
  return 2 * keys * size * PARTS * sizeof(part) + PANEL * size * (PARTS * sizeof(part) + sizeof(float)) +
         PANEL * keys * (PARTS * sizeof(part) + sizeof(float));
}

/* One head of one text: softmax(q k') v, into the inputs of the next product. */
TARGET static void attend(const Run *run, size_t task, char *scratch) {
  const size_t heads = run->model->heads, hidden = run->model->layers->hidden, size = hidden / heads;
  const size_t text = task / heads, head = task % heads, stride = 3 * hidden;
  const size_t begin = run->begin[text], tokens = run->begin[text + 1] - begin, keys = rounded_up(tokens, PANEL);
  const float *q = run->qkv + begin * stride + head * size, *k = q + hidden, *v = k + hidden;
  part *key_panels = (part *)scratch, *value_panels = key_panels + PARTS * keys * size;
  part *query_panel = value_panels + PARTS * keys * size, *share_panel = query_panel + PARTS * PANEL * size;
  float *scores = (float *)(share_panel + PARTS * PANEL * keys), *sums = scores + PANEL * keys;
  for (size_t key = 0; key < tokens; key += PANEL)
    pack_transposed(k + key * stride, least(PANEL, tokens - key), size, stride, key_panels + PARTS * key * size);
  pack(v, keys, size, stride, tokens, value_panels);
  for (size_t first = 0; first < tokens; first += PANEL) {
    const size_t queries = least(PANEL, tokens - first);
    float by[PANEL];
    pack_rows(q + first * stride, queries, size, stride, query_panel);
    for (size_t key = 0; key < keys; key += PANEL)
      multiply_rows(queries, query_panel, key_panels + PARTS * key * size, size / STEP, scores + key, keys, nothing_ahead);
    for (size_t i = 0; i < queries; i++) {
      float *score = scores + i * keys;
      const __m512 lowest = _mm512_set1_ps(-3e38f);
      __m512 most = lowest, sum = _mm512_setzero_ps();
      for (size_t key = 0; key < tokens; key += TILE) {
        const __mmask16 there = first_lanes(tokens - key);
        most = _mm512_max_ps(most, _mm512_mask_loadu_ps(lowest, there, score + key));
      }
      most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
      part *to = row_of(share_panel, i);
      for (size_t key = 0; key < keys; key += STEP, to += STEP_PARTS) {
        __m512 two[2];
        for (size_t half = 0; half < 2; half++) {
          const size_t at = key + half * TILE, left = tokens > at ? tokens - at : 0;
          const __mmask16 there = first_lanes(left);
          const __m512 score_of = _mm512_mask_loadu_ps(most, there, score + at);
          two[half] = _mm512_maskz_mov_ps(there, exponential(_mm512_sub_ps(score_of, most)));
          sum = _mm512_add_ps(sum, two[half]);
        }
        put(two[0], two[1], to);
      }
      by[i] = 1 / _mm512_reduce_add_ps(sum);
    }
    for (size_t column = 0; column < size; column += PANEL)
      multiply_rows(queries, share_panel, value_panels + PARTS * keys * column, keys / STEP, sums + column, size, nothing_ahead);
    for (size_t i = 0; i < queries; i++) {
      const size_t row = begin + first + i;
      part *to = row_of(run->panels + row / PANEL * PANEL * hidden * PARTS, row % PANEL);
      to += head * size / STEP * STEP_PARTS;
      const __m512 all = _mm512_set1_ps(by[i]);
      for (size_t at = 0; at < size; at += STEP, to += STEP_PARTS)
        put(_mm512_mul_ps(all, _mm512_loadu_ps(sums + i * size + at)),
            _mm512_mul_ps(all, _mm512_loadu_ps(sums + i * size + at + TILE)), to);
    }
  }
}

static size_t count_tasks(const Run *run, enum Step step) {
  const size_t hidden = run->model->layers->hidden, wide = run->model->layers->wide;
  switch (step) {
    case QKV: return product_tasks(run, hidden, 3 * hidden);
    case ATTENTION: return run->texts * run->model->heads;
    case OUT: return product_tasks(run, hidden, hidden);
    case WIDE: return product_tasks(run, hidden, wide);
    case NARROW: return product_tasks(run, wide, hidden);
    default: return (run->rows + NORM_ROWS - 1) / NORM_ROWS;
  }
}

TARGET static void run_task(const Run *run, enum Step step, size_t layer, size_t task, char *scratch) {
  const Layers *all = run->model->layers;
  const Layer *of = &all->layer[layer];
  const size_t hidden = all->hidden, wide = all->wide;
  switch (step) {
    case EMBEDDINGS_NORM: normalise(run, task, all->scale, all->shift, 1, 0); break;
    case QKV: product(run, task, QKV, run->panels, hidden, of->qkv, 3 * hidden, of->qkv_bias); break;
    case ATTENTION: attend(run, task, scratch); break;
    case OUT: product(run, task, OUT, run->panels, hidden, of->out, hidden, of->out_bias); break;
    case FIRST_NORM: normalise(run, task, of->first_scale, of->first_shift, 0, 0); break;
    case WIDE: product(run, task, WIDE, run->panels, hidden, of->wide, wide, of->wide_bias); break;
    case NARROW: product(run, task, NARROW, run->wide_panels, wide, of->narrow, hidden, of->narrow_bias); break;
    case SECOND_NORM: {
      normalise(run, task, of->second_scale, of->second_shift, 0, layer + 1 == all->count);
      break;
    }
  }
}

/* Does what is to do of each step, with the threads that came for it, one or many; who comes late helps with
 * what is left. A thread waits only for tasks that others have begun. */
TARGET static void take_part(void *data, size_t thread) {
  Run *run = data;
  char *scratch = run->scratch + thread * run->scratch_size;
  const size_t count = 1 + run->model->layers->count * STEPS_OF_LAYER;
  begin_products();
  for (size_t at = 0; at < count; at++) {
    const enum Step step = at ? QKV + (at - 1) % STEPS_OF_LAYER : EMBEDDINGS_NORM;
    Progress *progress = &run->progress[at];
    const size_t tasks = count_tasks(run, step);
    size_t task;
    while ((task = atomic_fetch_add(&progress->next, 1)) < tasks) {
      run_task(run, step, at ? (at - 1) / STEPS_OF_LAYER : 0, task, scratch);
      atomic_fetch_add(&progress->done, 1);
    }
    for (size_t spins = 0; atomic_load(&progress->done) < tasks; spins++)
      if (spins % SPINS == SPINS - 1)
        sched_yield();
      else
        _mm_pause();
  }
  end_products();
}

/* ---- The operator ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Layers *all_layers;

/* A constant input: its sizes, two at most, are to be these (one where the second is 0). */
static OrtStatus *read_constant(const OrtInfo *info, size_t place, size_t first, size_t second, const float **numbers) {
  const OrtValue *value = NULL;
  int constant = 0;
  int64_t sizes[2];
  size_t count = 0;
  void *data = NULL;
  OrtStatus *failed = constant_input(info, place, &constant, &value);
  if (failed) return failed;
  if (!constant) return create_status(FAIL, "the weights of a layer are no constants");
  if ((failed = read_shape(value, sizes, 2, &count)) || (failed = tensor_data(value, &data))) return failed;
  if (count != (second ? 2 : 1) || (size_t)sizes[0] != first || (second && (size_t)sizes[1] != second))
    return create_status(FAIL, "the weights of a layer do not fit each other");
  *numbers = data;
  return NULL;
}

/* Where among the inputs of a layer its weights are, and its vectors; queries, keys and values follow each other. */
static const size_t matrix_at[6] = {0, 2, 4, 6, 10, 12}, vector_at[10] = {1, 3, 5, 7, 8, 9, 11, 13, 14, 15};

static OrtStatus *read_layers(const OrtInfo *info, Layers *layers) {
  const size_t hidden = layers->hidden, wide = layers->wide;
  const size_t matrices = 4 * hidden * hidden + 2 * hidden * wide, vectors = 9 * hidden + wide;
  const size_t bytes = matrices * PARTS * sizeof(part) + vectors * sizeof(float);
  char *memory = aligned_alloc(64, rounded_up(layers->count * bytes + 2 * hidden * sizeof(float), 64));
  if (!memory) return create_status(FAIL, "no memory for the weights (bad_alloc)");
  layers->memory = memory;
  const float *scale = NULL, *shift = NULL;
  OrtStatus *not_read = read_constant(info, 2, hidden, 0, &scale);
  if (not_read || (not_read = read_constant(info, 3, hidden, 0, &shift))) return not_read;
  layers->scale = memcpy(memory + layers->count * bytes, scale, hidden * sizeof(float));
  layers->shift = memcpy(memory + layers->count * bytes + hidden * sizeof(float), shift, hidden * sizeof(float));
  for (size_t i = 0; i < layers->count; i++) {
    Layer *layer = &layers->layer[i];
    const size_t first = FIRST_WEIGHTS + i * INPUTS_OF_LAYER;
    part *panels[6];
    float *vector[10];
    for (size_t j = 0; j < 6; j++) {
      const size_t depth = j == 5 ? wide : hidden, columns = j == 4 ? wide : hidden;
      const float *numbers = NULL;
      OrtStatus *failed = read_constant(info, first + matrix_at[j], depth, columns, &numbers);
      if (failed) return failed;
      panels[j] = (part *)memory;
      pack(numbers, depth, columns, columns, depth, panels[j]);
      memory += depth * columns * PARTS * sizeof(part);
    }
    for (size_t j = 0; j < 10; j++) {
      const size_t size = vector_at[j] == 11 ? wide : hidden;
      const float *numbers = NULL;
      OrtStatus *failed = read_constant(info, first + vector_at[j], size, 0, &numbers);
      if (failed) return failed;
      vector[j] = memcpy(memory, numbers, size * sizeof(float));
      memory += size * sizeof(float);
    }
    *layer = (Layer){panels[0], panels[3], panels[4], panels[5], vector[0], vector[3], vector[6],
                     vector[7], vector[4], vector[5], vector[8], vector[9]};
  }
  return NULL;
}

static void leave_layers(Layers *layers) {
  pthread_mutex_lock(&lock);
  if (!--layers->users) {
    Layers **link = &all_layers;
    while (*link && *link != layers) link = &(*link)->next;
    if (*link) *link = layers->next;
    free(layers->memory);
    free(layers);
  }
  pthread_mutex_unlock(&lock);
}

/* The layers of these inputs, read where no session has them yet. */
static OrtStatus *take_layers(const OrtInfo *info, size_t count, Layers **taken) {
  const OrtValue *query = NULL, *wide = NULL;
  int constant = 0;
  int64_t sizes[2] = {0, 0}, wide_sizes[2] = {0, 0};
  size_t dimensions = 0;
  void *source = NULL;
  OrtStatus *failed = constant_input(info, FIRST_WEIGHTS, &constant, &query);
  if (!failed && constant) failed = constant_input(info, FIRST_WEIGHTS + matrix_at[4], &constant, &wide);
  if (failed) return failed;
  if (!constant) return create_status(FAIL, "the weights of a layer are no constants");
  if ((failed = read_shape(query, sizes, 2, &dimensions)) || (failed = read_shape(wide, wide_sizes, 2, &dimensions)))
    return failed;
  if (!sizes[0] || !wide_sizes[1] || sizes[0] % PANEL || wide_sizes[1] % PANEL)
    return create_status(FAIL, "the layers are not of multiples of 32");
  if ((failed = tensor_data(query, &source))) return failed;
  pthread_mutex_lock(&lock);
  Layers *found = all_layers;
  while (found && !(found->source == source && found->count == count)) found = found->next;
  if (!found && (found = malloc(sizeof *found))) {
    *found = (Layers){.next = all_layers, .source = source, .count = count};
    found->hidden = (size_t)sizes[0], found->wide = (size_t)wide_sizes[1];
    if ((failed = read_layers(info, found))) {
      free(found->memory);
      free(found);
      found = NULL;
    } else {
      all_layers = found;
    }
  }
  if (found) found->users++;
  pthread_mutex_unlock(&lock);
  *taken = found;
  return found || failed ? failed : create_status(FAIL, "no memory for the weights (bad_alloc)");
}

static void destroy(void *kernel) {
  Model *model = kernel;
  leave_layers(model->layers);
  free(model);
}

static OrtStatus *create_kernel(const Operator *self, const OrtApi *unused, const OrtInfo *info, void **kernel) {
  (void)self, (void)unused;
  size_t inputs = 0;
  int64_t heads = 0, threads = 0;
  float epsilon = 0;
  OrtStatus *failed = input_count(info, &inputs);
  if (failed || (failed = integer_attribute(info, "heads", &heads)) ||
      (failed = integer_attribute(info, "threads", &threads)) || (failed = float_attribute(info, "epsilon", &epsilon)))
    return failed;
  const size_t count = inputs < FIRST_WEIGHTS ? 0 : (inputs - FIRST_WEIGHTS) / INPUTS_OF_LAYER;
  if (!count || count > MOST_LAYERS || inputs != FIRST_WEIGHTS + count * INPUTS_OF_LAYER)
    return create_status(FAIL, "these are not the inputs of layers");
  Model *model = malloc(sizeof *model);
  if (!model) return create_status(FAIL, "no memory for the model (bad_alloc)");
  *model = (Model){NULL, (size_t)heads, threads < 1 ? 1 : least((size_t)threads, MOST_THREADS), epsilon};
  if ((failed = take_layers(info, count, &model->layers))) {
    free(model);
    return failed;
  }
  if (heads < 1 || model->layers->hidden % model->heads || model->layers->hidden / model->heads % STEP) {
    destroy(model);
    return create_status(FAIL, "the heads are not of multiples of 32");
  }
  *kernel = model;
  return NULL;
}

/* Takes so many bytes of the memory; none where there is no memory yet, to count them. */
static void *take(char *memory, size_t *used, size_t bytes) {
  void *taken = memory ? memory + *used : NULL;
  *used += rounded_up(bytes, 64);
  return taken;
}

/* Divides the memory of a run, and gives the bytes that it takes. */
static size_t lay_out(Run *run, char *memory) {
  const size_t hidden = run->model->layers->hidden, wide = run->model->layers->wide;
  const size_t rows = rounded_up(run->rows, PANEL);
  size_t used = 0;
  run->x = take(memory, &used, rows * hidden * sizeof(float));
  run->y = take(memory, &used, rows * hidden * sizeof(float));
  run->qkv = take(memory, &used, rows * 3 * hidden * sizeof(float));
  run->panels = take(memory, &used, rows * hidden * PARTS * sizeof(part));
  run->wide_panels = take(memory, &used, rows * wide * PARTS * sizeof(part));
  run->scratch_size = rounded_up(attention_bytes(run->longest, hidden / run->model->heads), 64);
  run->scratch = take(memory, &used, run->model->threads * run->scratch_size);
  return used;
}

/* The tokens that a part of the mask has. */
static size_t count_tokens(const int64_t *mask, size_t places) {
  size_t tokens = 0;
  for (size_t place = 0; place < places; place++) tokens += mask[place] != 0;
  return tokens;
}

/* Rows that one thread takes through all layers before the next, so that they stay in its core's cache. Several
 * threads have several caches, and more to do side by side where there is more of it. */
static size_t rows_together(const Model *model) {
  const size_t rows = block_rows(model->layers->wide);
  return model->threads > 1 || rows < LEAST_BLOCK ? SIZE_MAX : rows;
}

/* How many of the texts, from the first on, are taken through the layers together: an even share of their tokens. */
static size_t texts_together(const int64_t *mask, size_t texts, size_t length, size_t most_rows) {
  const size_t tokens = count_tokens(mask, texts * length);
  if (tokens <= most_rows) return texts;
  const size_t share = tokens / ((tokens - 1) / most_rows + 1);
  size_t taken = 1, rows = count_tokens(mask, length);
  for (; taken < texts; taken++) {
    const size_t next = count_tokens(mask + taken * length, length);
    if (rows + next / 2 >= share) break;
    rows += next;
  }
  return taken;
}

/* Reads the mask of the run's texts, one after another. */
static void read_mask(Run *run, const int64_t *mask) {
  const size_t hidden = run->model->layers->hidden;
  run->rows = run->longest = 0;
  for (size_t text = 0; text < run->texts; text++) {
    run->begin[text] = run->rows;
    for (size_t token = 0; token < run->length; token++) {
      const size_t place = text * run->length + token;
      if (mask[place])
        run->place[run->rows++] = place;
      else
        memset(run->outputs + place * hidden, 0, hidden * sizeof(float));
    }
    const size_t tokens = run->rows - run->begin[text];
    if (tokens > run->longest) run->longest = tokens;
  }
  run->begin[run->texts] = run->rows;
}

/* Takes the run's texts through the layers. */
static OrtStatus *run_layers(OrtContext *context, OrtAllocator *allocator, Run *run) {
  void *memory = NULL;
  OrtStatus *failed = allocate(allocator, lay_out(run, NULL), &memory);
  if (failed) return failed;
  lay_out(run, memory);
  memset(run->progress, 0, sizeof run->progress);
  if (run->model->threads == 1)
    take_part(run, 0);
  else
    failed = parallel_for(context, take_part, run->model->threads, 0, run);
  OrtStatus *not_freed = free_allocated(allocator, memory);
  return failed ? failed : not_freed;
}

static OrtStatus *compute(void *kernel, OrtContext *context) {
  const Model *model = kernel;
  const OrtValue *embeddings = NULL, *mask = NULL;
  OrtValue *output = NULL;
  OrtAllocator *allocator = NULL;
  int64_t sizes[3], mask_sizes[2];
  size_t count = 0, mask_count = 0;
  void *data = NULL, *mask_data = NULL, *output_data = NULL;
  OrtStatus *failed = get_input(context, 0, &embeddings);
  if (failed || (failed = get_input(context, 1, &mask)) || (failed = read_shape(embeddings, sizes, 3, &count)) ||
      (failed = read_shape(mask, mask_sizes, 2, &mask_count)))
    return failed;
  if (count != 3 || mask_count != 2 || (size_t)sizes[2] != model->layers->hidden || sizes[0] != mask_sizes[0] ||
      sizes[1] != mask_sizes[1])
    return create_status(FAIL, "the inputs do not fit the layers");
  if ((failed = get_output(context, 0, sizes, 3, &output)) || sizes[0] * sizes[1] == 0) return failed;
  if ((failed = tensor_data(embeddings, &data)) || (failed = tensor_data(mask, &mask_data)) ||
      (failed = tensor_data(output, &output_data)) || (failed = get_allocator(context, cpu_memory, &allocator)))
    return failed;
  const size_t texts = (size_t)sizes[0], length = (size_t)sizes[1], numbers = length * model->layers->hidden;
  Run *run = calloc(1, sizeof *run + (texts + 1 + texts * length) * sizeof(size_t));
  if (run) {
    run->model = model, run->length = length;
    run->begin = (size_t *)(run + 1), run->place = run->begin + texts + 1;
  } else {
    failed = create_status(FAIL, "no memory for the run (bad_alloc)");
  }
  const size_t most_rows = rows_together(model);
  for (size_t first = 0; !failed && first < texts; first += run->texts) {
    const int64_t *rest = (const int64_t *)mask_data + first * length;
    run->embeddings = (const float *)data + first * numbers, run->outputs = (float *)output_data + first * numbers;
    run->texts = texts_together(rest, texts - first, length, most_rows);
    read_mask(run, rest);
    failed = run_layers(context, allocator, run);
  }
  free(run);
  release_allocator(allocator);
  return failed;
}

static const char *name(const Operator *self) { return (void)self, BERT_LAYERS_NAME; }
static size_t three(const Operator *self) { return (void)self, 3; }
static int input_type(const Operator *self, size_t index) { return (void)self, index == 1 ? INT64 : FLOAT; }
static int characteristic(const Operator *self, size_t index) { return (void)self, index == 2 ? VARIADIC : 0; }
static int at_least_one(const Operator *self) { return (void)self, 1; }

const Operator BERT_LAYERS = {
    .version = API_VERSION,
    .name = name,
    .provider = provider,
    .input_type = input_type,
    .inputs = three,
    .output_type = float_type,
    .outputs = one,
    .destroy = destroy,
    .input_characteristic = characteristic,
    .output_characteristic = zero,
    .input_memory = zero,
    .variadic = {at_least_one, at_least_one, at_least_one, at_least_one},
    .create_kernel = create_kernel,
    .compute = compute,
    .start_version = first_version,
    .end_version = last_version,
};
