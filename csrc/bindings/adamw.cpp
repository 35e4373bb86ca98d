#include <adamw.h>
#include <error.h>
#include <parallel.h>
#include <pybind11/stl.h>

#include "bindings.h"

namespace py = pybind11;

namespace {

tttnn::WeightType type_of(const std::string& name) {
  if (name == "float32") return tttnn::WeightType::kFloat32;
  if (name == "bfloat16") return tttnn::WeightType::kBFloat16;
  throw py::value_error("dtype must be float32 or bfloat16, got " + name);
}

// source, weights, other (0: none), master (0: none), shadow (0: none), m, v, size, dtype
using TensorTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t,
                               std::uintptr_t, std::uintptr_t, std::size_t, std::string>;

}  // namespace

void bind_adamw(py::module_& module) {
  using tttnn::Adamw;
  py::class_<Adamw>(module, "Adamw",
                    "Gradient norm, clipping and AdamW in one call over tensors given by address. The caller keeps "
                    "what the addresses point to alive.")
      .def(py::init([](const std::vector<TensorTuple>& tensors, double beta1, double beta2, double epsilon,
                       double weight_decay, double clip_norm) {
             std::vector<tttnn::AdamwTensor> list;
             list.reserve(tensors.size());
             for (const auto& [source, weights, other, master, shadow, m, v, size, dtype] : tensors)
               list.push_back({reinterpret_cast<const void*>(source), reinterpret_cast<void*>(weights),
                               reinterpret_cast<void*>(other), reinterpret_cast<float*>(master),
                               reinterpret_cast<std::uint16_t*>(shadow), reinterpret_cast<float*>(m),
                               reinterpret_cast<float*>(v), size, type_of(dtype)});
             return std::make_unique<Adamw>(std::move(list),
                                            tttnn::AdamwOptions{beta1, beta2, epsilon, weight_decay, clip_norm});
           }),
           py::arg("tensors"), py::kw_only(), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"),
           py::arg("weight_decay"), py::arg("clip_norm"))
      .def("fresh_weights", &Adamw::fresh_weights, "Let the next step start from the pristine weights.")
      .def("keep", &Adamw::keep, "Leave the weights of now where they are; the next step writes the other place.")
      .def("places", &Adamw::places, "Where the weights of each tensor are: 0 source, 1 weights, 2 other.")
      .def("fresh_moments", &Adamw::fresh_moments, "Let the next step start from zero moments, steps counted from 0.")
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
