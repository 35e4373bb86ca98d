// What the bindings of the step for the processor and for the device have in common: all but step() itself.
#pragma once

#include <adamw_plan.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

// source, weights, other (0: none), master (0: none), shadow (0: none), m, v, size, dtype
using AdamwTensorTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t,
                                    std::uintptr_t, std::uintptr_t, std::size_t, std::string>;

inline std::vector<tttnn::AdamwTensor> adamw_tensors(const std::vector<AdamwTensorTuple>& tensors) {
  std::vector<tttnn::AdamwTensor> list;
  list.reserve(tensors.size());
  for (const auto& [source, weights, other, master, shadow, m, v, size, dtype] : tensors) {
    if (dtype != "float32" && dtype != "bfloat16")
      throw pybind11::value_error("dtype must be float32 or bfloat16, got " + dtype);
    list.push_back({reinterpret_cast<const void*>(source), reinterpret_cast<void*>(weights),
                    reinterpret_cast<void*>(other), reinterpret_cast<float*>(master),
                    reinterpret_cast<std::uint16_t*>(shadow), reinterpret_cast<float*>(m), reinterpret_cast<float*>(v),
                    size, dtype == "float32" ? tttnn::WeightType::kFloat32 : tttnn::WeightType::kBFloat16});
  }
  return list;
}

template <typename Step>
pybind11::class_<Step> bind_adamw_class(pybind11::module_& module, const char* name, const char* about) {
  namespace py = pybind11;
  return py::class_<Step>(module, name, about)
      .def(py::init([](const std::vector<AdamwTensorTuple>& tensors, double beta1, double beta2, double epsilon,
                       double weight_decay, double clip_norm) {
             return std::make_unique<Step>(adamw_tensors(tensors),
                                           tttnn::AdamwOptions{beta1, beta2, epsilon, weight_decay, clip_norm});
           }),
           py::arg("tensors"), py::kw_only(), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"),
           py::arg("weight_decay"), py::arg("clip_norm"))
      .def("fresh_weights", &Step::fresh_weights, "Let the next step start from the pristine weights.")
      .def("keep", &Step::keep, "Leave the weights of now where they are; the next step writes the other place.")
      .def("places", &Step::places, "Where the weights of each tensor are: 0 source, 1 weights, 2 other.")
      .def("fresh_moments", &Step::fresh_moments, "Let the next step start from zero moments, steps counted from 0.");
}
