// The extension's table of contents: one bind_<thing>(module&) per file.
#include "bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native core of tttnn: text store, pooling, HNSW, weight arena, attention.";
  bind_errors(module);
  bind_build_info(module);
  bind_pooling(module);
  bind_hnsw(module);
  bind_compact_index(module);
  bind_store(module);
  bind_mapped_file(module);
  bind_shared_memory(module);
  bind_arena(module);
  bind_adamw(module);
  bind_adamw_cuda(module);
  bind_retried(module);
  bind_attention(module);
}
