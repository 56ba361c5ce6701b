/* The layers of a BERT-like encoder by AVX-512. */

#if defined(__x86_64__) && defined(__linux__)

#include "avx512.h"

#define BERT_LAYERS bert_layers_avx512
#define BERT_LAYERS_NAME "BertLayersAvx512"

#include "bert_layers.h"

#endif
