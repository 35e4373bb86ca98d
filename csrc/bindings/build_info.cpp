#include <build_info.h>

#include "bindings.h"

namespace py = pybind11;

void bind_build_info(py::module_& module) {
  module.def(
      "build_info",
      [] {
        const tttnn::BuildInfo info = tttnn::build_info();
        py::dict result;
        result["version"] = info.version;
        result["compiler"] = info.compiler;
        result["simd"] = info.simd;
        result["zstd"] = info.zstd;
        result["hnswlib"] = info.hnswlib;
        result["cuda"] = info.cuda;
        return result;
      },
      "Describe this build: version, compiler, SIMD level of this processor, zstd, hnswlib, CUDA.");
}
