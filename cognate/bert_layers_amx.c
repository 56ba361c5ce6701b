/* The layers of a BERT-like encoder by AMX. */

#if defined(__x86_64__) && defined(__linux__)

#include "amx.h"

#define BERT_LAYERS bert_layers_amx
#define BERT_LAYERS_NAME "BertLayersAmx"

#include "bert_layers.h"

#endif
