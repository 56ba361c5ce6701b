/* The library of our operators for onnxruntime, which cognate/operators.py loads. */

#if defined(__x86_64__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

#include "onnxruntime_operator.h"

const OrtApi *api;
OrtMemory *cpu_memory;

/* Whether the system lets this process use AMX's tiles, which Linux wants to be asked for. */
int amx_allowed(void) {
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
  const Operator *operators[] = {&bf16x3, &bert_layers_amx, &bert_layers_avx512};
  for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
    if ((failed = add_operator(domain, operators[i]))) return failed;
  return add_domain(options, domain);
}

#endif
