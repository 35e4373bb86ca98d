// What the bindings of the step for the processor and for the device have in common: all but step() itself.
#pragma once

#include <adamw_plan.h>
#include <error.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

// One input per tensor, of addresses: gradients, sources and targets are parallel.
inline std::vector<tttnn::AdamwInput> adamw_inputs(const std::vector<std::uintptr_t>& gradients,
                                                   const std::vector<std::uintptr_t>& sources,
                                                   const std::vector<std::uintptr_t>& targets) {
  if (sources.size() != gradients.size() || targets.size() != gradients.size())
    throw pybind11::value_error("sources and targets must be as many as gradients (" +
                                std::to_string(gradients.size()) + "), got " + std::to_string(sources.size()) +
                                " and " + std::to_string(targets.size()));
  std::vector<tttnn::AdamwInput> inputs;
  inputs.reserve(gradients.size());
  for (std::size_t i = 0; i < gradients.size(); ++i)
    inputs.push_back({reinterpret_cast<const void*>(gradients[i]), reinterpret_cast<const void*>(sources[i]),
                      reinterpret_cast<void*>(targets[i])});
  return inputs;
}

template <typename Step>
pybind11::class_<Step> bind_adamw_class(pybind11::module_& module, const char* name, const char* about) {
  namespace py = pybind11;
  return py::class_<Step>(module, name, about)
      .def(py::init([](const std::vector<tttnn::AdamwTensor>& tensors, double beta1, double beta2, double epsilon,
                       double weight_decay, double clip_norm) {
             return std::make_unique<Step>(tensors,
                                           tttnn::AdamwOptions{beta1, beta2, epsilon, weight_decay, clip_norm});
           }),
           py::arg("tensors"), py::kw_only(), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"),
           py::arg("weight_decay"), py::arg("clip_norm"))
      .def("fresh_moments", &Step::fresh_moments, "Let the next step start from zero moments, steps counted from 0.");
}
