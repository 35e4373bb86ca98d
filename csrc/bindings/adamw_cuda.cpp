#include <adamw_cuda.h>

#include "adamw_tensors.h"
#include "bindings.h"

namespace py = pybind11;

void bind_adamw_cuda(py::module_& module) {
  using tttnn::AdamwCuda;
  bind_adamw_class<AdamwCuda>(module, "AdamwCuda",
                              "As Adamw, over tensors on a CUDA device given by address. The caller keeps what the "
                              "addresses point to alive.")
      .def_property_readonly("scratch_bytes", &AdamwCuda::scratch_bytes, "Device memory that a step needs, in bytes.")
      .def(
          "step",
          [](AdamwCuda& adamw, const std::vector<std::uintptr_t>& gradients, const std::vector<std::uintptr_t>& sources,
             const std::vector<std::uintptr_t>& targets, double learning_rate, std::uintptr_t scratch, int device,
             std::uintptr_t stream) {
            const auto inputs = adamw_inputs(gradients, sources, targets);
            tttnn::AdamwStep result{};
            {
              // Safe without the GIL: only memory that the caller keeps alive is touched, no Python object.
              py::gil_scoped_release release;
              result = adamw.step(inputs, learning_rate, reinterpret_cast<void*>(scratch), device,
                                  reinterpret_cast<void*>(stream));
            }
            return std::make_pair(result.norm, result.bytes_moved);
          },
          py::arg("gradients"), py::arg("sources"), py::arg("targets"), py::arg("learning_rate"), py::kw_only(),
          py::arg("scratch"), py::arg("device"), py::arg("stream"),
          "As Adamw.step, with device memory for intermediate values, on a stream; waits until it has run.");
}
