/* A linear layer in float32 by three products in bfloat16 (amx.h): an operator for onnxruntime.
 *
 * cognate/bf16x3.py says which products of a graph it takes.
 */

#if defined(__x86_64__) && defined(__linux__)

#include <pthread.h>
#include <stdlib.h>

#include "amx.h"
#include "onnxruntime_operator.h"

enum {
  CACHED_DEPTH = 768,          /* of a panel of weights, so that it stays in the second cache: 96 KB */
  CACHED_INPUTS = 96 * 1024,   /* numbers of the inputs, so that their parts do too: 384 KB */
};

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

TARGET static void pack_task(void *data, size_t task) {
  const Run *run = data;
  const size_t depth = run->weights->depth, first = task * PANEL;
  pack_rows(run->inputs + first * depth, least(PANEL, run->rows - first), depth, depth, run->panels + first * depth * 2);
}

/* All rows by some of the columns. */
TARGET static void multiply_task(void *data, size_t task) {
  const Run *run = data;
  const size_t depth = run->weights->depth, columns = run->weights->columns;
  const size_t begin = task * run->task_columns, end = least(columns, begin + run->task_columns);
  const size_t cached_rows = (CACHED_INPUTS / depth + PANEL - 1) / PANEL * PANEL;
  float last[PANEL * PANEL] __attribute__((aligned(64)));
  begin_products();
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
            multiply_rows_onto(rows, inputs, weights, steps, outputs, columns, start > 0, nothing_ahead);
            continue;
          }
          for (size_t i = 0; i < rows && start; i++)
            memcpy(last + i * PANEL, outputs + i * columns, PANEL * sizeof(float));
          multiply_rows_onto(rows, inputs, weights, steps, last, PANEL, start > 0, nothing_ahead);
          for (size_t i = 0; i < rows; i++)
            memcpy(outputs + i * columns, last + i * PANEL, PANEL * sizeof(float));
        }
      }
  end_products();
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
      pack(source, depth, columns, columns, depth, found->panels);
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
static size_t two(const Operator *self) { return (void)self, 2; }

const Operator bf16x3 = {
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

#endif
