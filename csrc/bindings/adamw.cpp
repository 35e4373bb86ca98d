#include <adamw.h>
#include <error.h>
#include <parallel.h>

#include "adamw_tensors.h"
#include "bindings.h"

namespace py = pybind11;

void bind_adamw(py::module_& module) {
  using tttnn::Adamw;
  using tttnn::AdamwTensor;
  py::class_<AdamwTensor>(
      module, "AdamwTensor",
      "What lasts of one tensor that is trained: addresses of arrays of `size` elements. `dtype` is "
      "that of its weights. `master` (0: none) holds bfloat16 weights in float32, `rounded` (0: "
      "none) float32 weights in bfloat16.")
      .def(py::init([](std::size_t size, const std::string& dtype, std::uintptr_t m, std::uintptr_t v,
                       std::uintptr_t master, std::uintptr_t rounded) {
             if (dtype != "float32" && dtype != "bfloat16")
               throw py::value_error("dtype must be float32 or bfloat16, got " + dtype);
             if ((dtype == "bfloat16") != (master != 0))
               throw py::value_error("master must be given for bfloat16 weights and for no others, got " +
                                     std::string(master != 0 ? "one" : "none") + " for " + dtype);
             return AdamwTensor{size,
                                dtype == "float32" ? tttnn::WeightType::kFloat32 : tttnn::WeightType::kBFloat16,
                                reinterpret_cast<float*>(m),
                                reinterpret_cast<float*>(v),
                                reinterpret_cast<float*>(master),
                                reinterpret_cast<std::uint16_t*>(rounded)};
           }),
           py::kw_only(), py::arg("size"), py::arg("dtype"), py::arg("m"), py::arg("v"), py::arg("master") = 0,
           py::arg("rounded") = 0);
  bind_adamw_class<Adamw>(
      module, "Adamw",
      "Gradient norm, clipping and AdamW in one call over tensors given by address. The caller keeps "
      "what the addresses point to alive.")
      .def(
          "step",
          [](Adamw& adamw, const std::vector<std::uintptr_t>& gradients, const std::vector<std::uintptr_t>& sources,
             const std::vector<std::uintptr_t>& targets, double learning_rate, int max_threads) {
            const auto inputs = adamw_inputs(gradients, sources, targets);
            tttnn::AdamwStep result;
            {
              // Safe without the GIL: only memory that the caller keeps alive is touched, no Python object.
              py::gil_scoped_release release;
              result = adamw.step(inputs, learning_rate, tttnn::shared_pool(), max_threads);
            }
            return std::make_pair(result.norm, result.bytes_moved);
          },
          py::arg("gradients"), py::arg("sources"), py::arg("targets"), py::arg("learning_rate"),
          py::arg("max_threads") = 0,
          "Train on gradients (addresses, 0 for none) weights that are at `sources` (0: in their masters) and go to "
          "`targets`; return the norm before clipping and the bytes moved.");
}
