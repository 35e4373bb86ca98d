#include <adamw_cuda.h>
#include <pybind11/stl.h>

#include "bindings.h"

namespace py = pybind11;

namespace {

// source, weights, other (0: none), master (0: none), shadow (0: none), m, v, size, dtype
using TensorTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t,
                               std::uintptr_t, std::uintptr_t, std::size_t, std::string>;

tttnn::WeightType type_of(const std::string& name) {
  if (name == "float32") return tttnn::WeightType::kFloat32;
  if (name == "bfloat16") return tttnn::WeightType::kBFloat16;
  throw py::value_error("dtype must be float32 or bfloat16, got " + name);
}

}  // namespace

void bind_adamw_cuda(py::module_& module) {
  using tttnn::AdamwCuda;
  py::class_<AdamwCuda>(module, "AdamwCuda",
                        "As Adamw, over tensors on a CUDA device given by address. The caller keeps what the addresses "
                        "point to alive.")
      .def(py::init([](const std::vector<TensorTuple>& tensors, double beta1, double beta2, double epsilon,
                       double weight_decay, double clip_norm) {
             std::vector<tttnn::AdamwTensor> list;
             list.reserve(tensors.size());
             for (const auto& [source, weights, other, master, shadow, m, v, size, dtype] : tensors) {
               tttnn::AdamwTensor tensor{};
               tensor.source = reinterpret_cast<const void*>(source);
               tensor.weights = reinterpret_cast<void*>(weights);
               tensor.other = reinterpret_cast<void*>(other);
               tensor.shadow = reinterpret_cast<std::uint16_t*>(shadow);
               tensor.master = reinterpret_cast<float*>(master);
               tensor.m = reinterpret_cast<float*>(m);
               tensor.v = reinterpret_cast<float*>(v);
               tensor.size = size;
               tensor.type = type_of(dtype);
               list.push_back(tensor);
             }
             tttnn::AdamwOptions options{};
             options.beta1 = beta1;
             options.beta2 = beta2;
             options.epsilon = epsilon;
             options.weight_decay = weight_decay;
             options.clip_norm = clip_norm;
             return std::make_unique<AdamwCuda>(std::move(list), options);
           }),
           py::arg("tensors"), py::kw_only(), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"),
           py::arg("weight_decay"), py::arg("clip_norm"))
      .def_property_readonly("scratch_bytes", &AdamwCuda::scratch_bytes, "Device memory that a step needs, in bytes.")
      .def("fresh_weights", &AdamwCuda::fresh_weights, "Let the next step start from the pristine weights.")
      .def("keep", &AdamwCuda::keep, "Leave the weights of now where they are; the next step writes the other place.")
      .def("places", &AdamwCuda::places, "Where the weights of each tensor are: 0 source, 1 weights, 2 other.")
      .def("fresh_moments", &AdamwCuda::fresh_moments,
           "Let the next step start from zero moments, steps counted from 0.")
      .def(
          "step",
          [](AdamwCuda& adamw, const std::vector<std::uintptr_t>& gradients, double learning_rate,
             std::uintptr_t scratch, int device, std::uintptr_t stream) {
            std::vector<const void*> addresses;
            addresses.reserve(gradients.size());
            for (std::uintptr_t address : gradients) addresses.push_back(reinterpret_cast<const void*>(address));
            tttnn::AdamwStep result{};
            {
              // Safe without the GIL: only memory that the caller keeps alive is touched, no Python object.
              py::gil_scoped_release release;
              result = adamw.step(addresses, learning_rate, reinterpret_cast<void*>(scratch), device,
                                  reinterpret_cast<void*>(stream));
            }
            return std::make_pair(result.norm, result.bytes_moved);
          },
          py::arg("gradients"), py::arg("learning_rate"), py::kw_only(), py::arg("scratch"), py::arg("device"),
          py::arg("stream"),
          "Train on gradients (addresses, 0 for none); return the norm before clipping and the bytes moved.");
}
