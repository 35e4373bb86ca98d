#pragma once

#include <pybind11/pybind11.h>

void bind_errors(pybind11::module_& module);
void bind_build_info(pybind11::module_& module);
void bind_pooling(pybind11::module_& module);
void bind_hnsw(pybind11::module_& module);
void bind_compact_index(pybind11::module_& module);
void bind_store(pybind11::module_& module);
void bind_mapped_file(pybind11::module_& module);
void bind_shared_memory(pybind11::module_& module);
void bind_arena(pybind11::module_& module);
void bind_adamw(pybind11::module_& module);
void bind_adamw_cuda(pybind11::module_& module);
void bind_retried(pybind11::module_& module);
void bind_attention(pybind11::module_& module);
