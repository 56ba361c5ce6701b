/* What operators of ours need of onnxruntime's C interface: of its version 17, which later ones keep.
 *
 * (onnxruntime_c_api.h: functions are never moved in their table, and fields never in OrtCustomOp.)
 */

#ifndef COGNATE_ONNXRUNTIME_OPERATOR_H
#define COGNATE_ONNXRUNTIME_OPERATOR_H

#include <stddef.h>
#include <stdint.h>

typedef void OrtStatus, OrtValue, OrtContext, OrtInfo, OrtShape, OrtAllocator, OrtMemory, OrtDomain,
    OrtOptions;
typedef const void *OrtApi;

enum { API_VERSION = 17, FLOAT = 1, INT64 = 7, FAIL = 1, VARIADIC = 2 };

extern const OrtApi *api __attribute__((visibility("hidden")));

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
#define float_attribute CALL(85, OrtStatus *, const OrtInfo *, const char *, float *)
#define integer_attribute CALL(86, OrtStatus *, const OrtInfo *, const char *, int64_t *)
#define get_input CALL(90, OrtStatus *, const OrtContext *, size_t, const OrtValue **)
#define get_output CALL(91, OrtStatus *, OrtContext *, size_t, const int64_t *, size_t, OrtValue **)
#define release_shape CALL(99, void, OrtShape *)
#define release_allocator CALL(132, void, OrtAllocator *)
#define input_count CALL(230, OrtStatus *, const OrtInfo *, size_t *)
#define constant_input CALL(249, OrtStatus *, const OrtInfo *, size_t, int *, const OrtValue **)
#define get_allocator CALL(253, OrtStatus *, const OrtContext *, const OrtMemory *, OrtAllocator **)
#define parallel_for CALL(274, OrtStatus *, const OrtContext *, void (*)(void *, size_t), size_t, size_t, void *)

extern OrtMemory *cpu_memory __attribute__((visibility("hidden")));

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
static inline OrtStatus *read_shape(const OrtValue *value, int64_t *sizes, size_t room, size_t *count) {
  OrtShape *shape = NULL;
  OrtStatus *failed = get_shape(value, &shape);
  if (failed) return failed;
  failed = count_dimensions(shape, count);
  if (!failed && *count > room) *count = 0;
  if (!failed) failed = get_dimensions(shape, sizes, *count);
  release_shape(shape);
  return failed;
}

/* What is the same for all operators of ours. */
static inline const char *provider(const Operator *self) { return (void)self, "CPUExecutionProvider"; }
static inline size_t one(const Operator *self) { return (void)self, 1; }
static inline int zero(const Operator *self, size_t index) { return (void)self, (void)index, 0; }
static inline int float_type(const Operator *self, size_t index) { return (void)self, (void)index, FLOAT; }
static inline int first_version(const Operator *self) { return (void)self, 1; }
static inline int last_version(const Operator *self) { return (void)self, INT32_MAX; }

/* bf16x3.c, and bert_layers.h by amx.h and by avx512.h */
extern const Operator bf16x3 __attribute__((visibility("hidden")));
extern const Operator bert_layers_amx __attribute__((visibility("hidden")));
extern const Operator bert_layers_avx512 __attribute__((visibility("hidden")));

#endif
