/* A linear layer in float32, by three products in bfloat16 on Intel's AMX: an operator for onnxruntime.
 *
 * A float32 number is a bfloat16 one and a remainder that is nearly one too: x = h + l, to 2^-17 of x. Then
 *
 *     x w  =  xh wh  +  xh wl  +  xl wh  +  (xl wl, below 2^-17 of it, left out)
 *
 * AMX multiplies bfloat16 exactly and adds in float32, some sixteen times as fast as AVX-512 does in float32, so
 * that three products take less than half the time of the one. (G. Henry, P. Tang, A. Heinecke, "Leveraging the
 * bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019, https://arxiv.org/abs/1904.06376)
 *
 * cognate/bf16x3.py loads this library, and says which products of a graph it takes.
 */

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

/* The compiler does not know that tiles are read from memory and written to it. */
#define MEMORY_IS_USED __asm__ volatile("" ::: "memory")

enum {
  TILE = 16,                   /* rows of a tile, and columns of float32 */
  STEP = 32,                   /* columns of bfloat16 in a tile */
  PANEL = 2 * TILE,            /* rows, or columns of weights, that are multiplied together */
  PART = TILE * STEP,          /* numbers in a tile of bfloat16 */
  STEP_PARTS = 4 * PART,       /* of a panel: two tiles of high parts, two of low ones */
  CACHED_DEPTH = 768,          /* of a panel of weights, so that it stays in the second cache: 96 KB */
  CACHED_INPUTS = 96 * 1024,   /* numbers of the inputs, so that their parts do too: 384 KB */
};

typedef uint16_t bfloat16;

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* ---- The arithmetic ---- */

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

/* Lays weights (depth, columns) out in panels. */
AMX static void pack(const float *weights, size_t depth, size_t columns, bfloat16 *panels) {
  for (size_t column = 0; column < columns; column += PANEL)
    for (size_t start = 0; start < depth; start += STEP, panels += STEP_PARTS)
      for (size_t half = 0; half < 2; half++)
        for (size_t row = 0; row < TILE; row++) {
          const float *two = weights + (start + 2 * row) * columns + column + half * TILE;
          __m512i high, low;
          split(_mm512_loadu_ps(two), _mm512_loadu_ps(two + columns), &high, &low);
          pair(high, panels + half * PART + row * STEP);
          pair(low, panels + (2 + half) * PART + row * STEP);
        }
}

/* Lays some rows of the inputs (rows, depth), a panel's or fewer, out in a panel. */
AMX static void pack_rows(const float *inputs, size_t rows, size_t depth, bfloat16 *panel) {
  for (size_t row = 0; row < rows; row++) {
    bfloat16 *to = panel + row / TILE * PART + row % TILE * STEP;
    for (size_t start = 0; start < depth; start += STEP, inputs += STEP, to += STEP_PARTS) {
      __m512i high, low;
      split(_mm512_loadu_ps(inputs), _mm512_loadu_ps(inputs + TILE), &high, &low);
      _mm512_storeu_si512(to, high);
      _mm512_storeu_si512(to + 2 * PART, low);
    }
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

/* Adds the product of a panel of inputs, or of the first half of its rows, by one of weights, over some steps of
 * the depth, to the outputs of their rows and columns, or sets them to it. */
AMX static inline __attribute__((always_inline)) void multiply(const bfloat16 *inputs, const bfloat16 *weights,
                                                               size_t steps, float *outputs, size_t columns,
                                                               int add, const int whole) {
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
    _tile_loadd(7, weights + 3 * PART, line);
    _tile_dpbf16ps(1, 4, 7);
    if (whole) {
      _tile_loadd(5, inputs + PART, line);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(6, weights, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weights + PART, line);
    _tile_dpbf16ps(1, 4, 7);
    if (whole) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(4, inputs + 2 * PART, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
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

/* A layer's weights, shared by the sessions that are given them in the same memory. */
typedef struct Weights {
  struct Weights *next;
  const float *source;
  size_t depth, columns, users;
  bfloat16 *panels;
} Weights;

/* One run of a layer. */
typedef struct {
  const Weights *weights;
  const float *inputs;
  float *outputs;
  size_t rows;
  bfloat16 *panels; /* of the inputs; what lies beyond the last row is whatever was there, and used for no one */
  size_t task_columns;
} Run;

static void pack_task(void *data, size_t task) {
  const Run *run = data;
  const size_t depth = run->weights->depth, first = task * PANEL;
  pack_rows(run->inputs + first * depth, least(PANEL, run->rows - first), depth, run->panels + first * depth * 2);
}

/* All rows by some of the columns. */
AMX static void multiply_task(void *data, size_t task) {
  const Run *run = data;
  const size_t depth = run->weights->depth, columns = run->weights->columns;
  const size_t begin = task * run->task_columns, end = least(columns, begin + run->task_columns);
  const size_t cached_rows = (CACHED_INPUTS / depth + PANEL - 1) / PANEL * PANEL;
  float last[PANEL * PANEL] __attribute__((aligned(64)));
  configure_tiles();
  for (size_t block = 0; block < run->rows; block += cached_rows)
    for (size_t column = begin; column < end; column += PANEL)
      for (size_t start = 0; start < depth; start += CACHED_DEPTH) {
        const size_t offset = start / STEP * STEP_PARTS, steps = least(CACHED_DEPTH, depth - start) / STEP;
        const bfloat16 *weights = run->weights->panels + column * depth * 2 + offset;
        for (size_t row = block; row < least(run->rows, block + cached_rows); row += PANEL) {
          const bfloat16 *inputs = run->panels + row * depth * 2 + offset;
          float *outputs = run->outputs + row * columns + column;
          const size_t rows = least(PANEL, run->rows - row);
          if (rows == PANEL) {
            multiply(inputs, weights, steps, outputs, columns, start > 0, 1);
            continue;
          }
          for (size_t i = 0; i < rows && start; i++)
            memcpy(last + i * PANEL, outputs + i * columns, PANEL * sizeof(float));
          if (rows > TILE)
            multiply(inputs, weights, steps, last, PANEL, start > 0, 1);
          else
            multiply(inputs, weights, steps, last, PANEL, start > 0, 0);
          for (size_t i = 0; i < rows; i++)
            memcpy(outputs + i * columns, last + i * PANEL, PANEL * sizeof(float));
        }
      }
  _tile_release();
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Weights *all_weights;

static Weights *take_weights(const float *source, size_t depth, size_t columns) {
  pthread_mutex_lock(&lock);
  Weights *found = all_weights;
  while (found && !(found->source == source && found->depth == depth && found->columns == columns))
    found = found->next;
  if (!found && (found = malloc(sizeof *found))) {
    *found = (Weights){all_weights, source, depth, columns, 0, NULL};
    if ((found->panels = aligned_alloc(64, 2 * depth * columns * sizeof(bfloat16)))) {
      pack(source, depth, columns, found->panels);
      all_weights = found;
    } else {
      free(found);
      found = NULL;
    }
  }
  if (found) found->users++;
  pthread_mutex_unlock(&lock);
  return found;
}

static void leave_weights(Weights *weights) {
  pthread_mutex_lock(&lock);
  if (!--weights->users) {
    Weights **link = &all_weights;
    while (*link != weights) link = &(*link)->next;
    *link = weights->next;
    free(weights->panels);
    free(weights);
  }
  pthread_mutex_unlock(&lock);
}

/* ---- The operator, by onnxruntime's C interface: of its version 17, which later ones keep ----
 *
 * (onnxruntime_c_api.h: functions are never moved in their table, and fields never in OrtCustomOp.)
 */

typedef void OrtStatus, OrtValue, OrtContext, OrtInfo, OrtShape, OrtAllocator, OrtMemory, OrtDomain,
    OrtOptions;
typedef const void *OrtApi;

enum { API_VERSION = 17, FLOAT = 1, REQUIRED = 0, FAIL = 1 };

static const OrtApi *api;

/* A function of the table, by its place in it. */
#define CALL(place, result, ...) ((result(*)(__VA_ARGS__))api[place])
#define create_status CALL(0, OrtStatus *, int, const char *)
#define create_domain CALL(26, OrtStatus *, const char *, OrtDomain **)
#define add_operator CALL(27, OrtStatus *, OrtDomain *, const void *)
#define add_domain CALL(28, OrtStatus *, OrtOptions *, OrtDomain *)
#define tensor_data CALL(51, OrtStatus *, const OrtValue *, void **)
#define count_dimensions CALL(61, OrtStatus *, const OrtShape *, size_t *)
#define get_dimensions CALL(62, OrtStatus *, const OrtShape *, int64_t *, size_t)
#define get_shape CALL(65, OrtStatus *, const OrtValue *, OrtShape **)
#define allocate CALL(75, OrtStatus *, OrtAllocator *, size_t, void **)
#define free_allocated CALL(76, OrtStatus *, OrtAllocator *, void *)
#define create_memory_info CALL(69, OrtStatus *, int, int, OrtMemory **)
#define get_input CALL(90, OrtStatus *, const OrtContext *, size_t, const OrtValue **)
#define get_output CALL(91, OrtStatus *, OrtContext *, size_t, const int64_t *, size_t, OrtValue **)
#define release_shape CALL(99, void, OrtShape *)
#define release_allocator CALL(132, void, OrtAllocator *)
#define constant_input CALL(249, OrtStatus *, const OrtInfo *, size_t, int *, const OrtValue **)
#define get_allocator CALL(253, OrtStatus *, const OrtContext *, const OrtMemory *, OrtAllocator **)
#define parallel_for CALL(274, OrtStatus *, const OrtContext *, void (*)(void *, size_t), size_t, size_t, void *)


static OrtMemory *cpu_memory;

typedef struct Operator {
  uint32_t version;
  void *create_kernel_v1;
  const char *(*name)(const struct Operator *);
  const char *(*provider)(const struct Operator *);
  int (*input_type)(const struct Operator *, size_t);
  size_t (*inputs)(const struct Operator *);
  int (*output_type)(const struct Operator *, size_t);
  size_t (*outputs)(const struct Operator *);
  void *compute_v1;
  void (*destroy)(void *);
  int (*input_characteristic)(const struct Operator *, size_t);
  int (*output_characteristic)(const struct Operator *, size_t);
  int (*input_memory)(const struct Operator *, size_t);
  int (*variadic[4])(const struct Operator *);
  OrtStatus *(*create_kernel)(const struct Operator *, const OrtApi *, const OrtInfo *, void **);
  OrtStatus *(*compute)(void *, OrtContext *);
  OrtStatus *(*infer_shape)(const struct Operator *, void *);
  int (*start_version)(const struct Operator *);
  int (*end_version)(const struct Operator *);
} Operator;

/* The sizes of a tensor, at most `room` of them. Their number is 0 where there are more. */
static OrtStatus *read_shape(const OrtValue *value, int64_t *sizes, size_t room, size_t *count) {
  OrtShape *shape = NULL;
  OrtStatus *failed = get_shape(value, &shape);
  if (failed) return failed;
  failed = count_dimensions(shape, count);
  if (!failed && *count > room) *count = 0;
  if (!failed) failed = get_dimensions(shape, sizes, *count);
  release_shape(shape);
  return failed;
}

static OrtStatus *create_kernel(const Operator *self, const OrtApi *unused, const OrtInfo *info, void **kernel) {
  (void)self, (void)unused;
  const OrtValue *value = NULL;
  int constant = 0;
  int64_t sizes[2];
  size_t count = 0;
  void *data = NULL;
  OrtStatus *failed = constant_input(info, 1, &constant, &value);
  if (failed) return failed;
  if (!constant) return create_status(FAIL, "the weights are no constant");
  if ((failed = read_shape(value, sizes, 2, &count))) return failed;
  if (count != 2 || sizes[0] % STEP || sizes[1] % PANEL)
    return create_status(FAIL, "the weights are no matrix of multiples of 32");
  if ((failed = tensor_data(value, &data))) return failed;
  *kernel = take_weights(data, (size_t)sizes[0], (size_t)sizes[1]);
  return *kernel ? NULL : create_status(FAIL, "no memory for the weights (bad_alloc)");
}

static OrtStatus *compute(void *kernel, OrtContext *context) {
  enum { MOST_DIMENSIONS = 8 };
  const Weights *weights = kernel;
  const OrtValue *input = NULL;
  OrtValue *output = NULL;
  OrtAllocator *allocator = NULL;
  int64_t sizes[MOST_DIMENSIONS];
  size_t count = 0;
  void *data = NULL;
  OrtStatus *failed = get_input(context, 0, &input);
  if (failed || (failed = read_shape(input, sizes, MOST_DIMENSIONS, &count))) return failed;
  if (!count || sizes[count - 1] != (int64_t)weights->depth)
    return create_status(FAIL, "the inputs do not fit the weights");
  Run run = {.weights = weights, .rows = 1};
  for (size_t i = 0; i + 1 < count; i++) run.rows *= (size_t)sizes[i];
  sizes[count - 1] = (int64_t)weights->columns;
  if ((failed = get_output(context, 0, sizes, count, &output)) || !run.rows) return failed;
  if ((failed = tensor_data(input, &data))) return failed;
  run.inputs = data;
  if ((failed = tensor_data(output, &data))) return failed;
  run.outputs = data;
  const size_t row_panels = (run.rows + PANEL - 1) / PANEL;
  if ((failed = get_allocator(context, cpu_memory, &allocator))) return failed;
  if (!(failed = allocate(allocator, row_panels * PANEL * weights->depth * 2 * sizeof(bfloat16), &data))) {
    run.panels = data;
    failed = parallel_for(context, pack_task, row_panels, 0, &run);
    /* Threads divide the columns, so that each reads its weights once. */
    run.task_columns = weights->columns % (4 * PANEL) ? PANEL : 4 * PANEL;
    size_t tasks = (weights->columns + run.task_columns - 1) / run.task_columns;
    if (!failed) failed = parallel_for(context, multiply_task, tasks, 0, &run);
    OrtStatus *not_freed = free_allocated(allocator, data);
    if (!failed) failed = not_freed;
  }
  release_allocator(allocator);
  return failed;
}

static void destroy(void *kernel) { leave_weights(kernel); }
static const char *name(const Operator *self) { return (void)self, "Bf16x3"; }
static const char *provider(const Operator *self) { return (void)self, "CPUExecutionProvider"; }
static size_t two(const Operator *self) { return (void)self, 2; }
static size_t one(const Operator *self) { return (void)self, 1; }
static int float_type(const Operator *self, size_t index) { return (void)self, (void)index, FLOAT; }
static int zero(const Operator *self, size_t index) { return (void)self, (void)index, 0; }
static int first_version(const Operator *self) { return (void)self, 1; }
static int last_version(const Operator *self) { return (void)self, INT32_MAX; }

static const Operator operator= {
    .version = API_VERSION,
    .name = name,
    .provider = provider,
    .input_type = float_type,
    .inputs = two,
    .output_type = float_type,
    .outputs = one,
    .destroy = destroy,
    .input_characteristic = zero,
    .output_characteristic = zero,
    .input_memory = zero,
    .create_kernel = create_kernel,
    .compute = compute,
    .start_version = first_version,
    .end_version = last_version,
};

/* Whether the system lets this process use AMX's tiles, which Linux wants to be asked for. */
int bf16x3_allowed(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

struct OrtApiBase {
  const OrtApi *(*get_api)(uint32_t version);
  const char *(*version)(void);
};

/* What onnxruntime calls as the library is registered with a session's options. */
OrtStatus *RegisterCustomOps(OrtOptions *options, const struct OrtApiBase *base) {
  OrtDomain *domain = NULL;
  api = base->get_api(API_VERSION);
  OrtStatus *failed = cpu_memory ? NULL : create_memory_info(1, 0, &cpu_memory);
  if (failed || (failed = create_domain("", &domain))) return failed;
  if ((failed = add_operator(domain, &operator))) return failed;
  return add_domain(options, domain);
}

#endif
