#include <adamw.h>
#include <error.h>
#include <parallel.h>

#include "adamw_tensors.h"
#include "bindings.h"

namespace py = pybind11;

void bind_adamw(py::module_& module) {
  using tttnn::Adamw;
  bind_adamw_class<Adamw>(
      module, "Adamw",
      "Gradient norm, clipping and AdamW in one call over tensors given by address. The caller keeps "
      "what the addresses point to alive.")
      .def(
          "step",
          [](Adamw& adamw, const std::vector<std::uintptr_t>& gradients, double learning_rate, int max_threads) {
            std::vector<const void*> addresses;
            addresses.reserve(gradients.size());
            for (std::uintptr_t address : gradients) addresses.push_back(reinterpret_cast<const void*>(address));
            tttnn::AdamwStep result;
            {
              // Safe without the GIL: only memory that the caller keeps alive is touched, no Python object.
              py::gil_scoped_release release;
              result = adamw.step(addresses, learning_rate, tttnn::shared_pool(), max_threads);
            }
            return std::make_pair(result.norm, result.bytes_moved);
          },
          py::arg("gradients"), py::arg("learning_rate"), py::arg("max_threads") = 0,
          "Train on gradients (addresses, 0 for none); return the norm before clipping and the bytes moved.");
}
