#include <attention.h>
#include <error.h>
#include <parallel.h>
#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace {

// address, strides of heads and of tokens in elements
using View = std::tuple<std::uintptr_t, std::size_t, std::size_t>;

tttnn::AttentionInput input(const View& view) {
  return {reinterpret_cast<const std::uint16_t*>(std::get<0>(view)), std::get<1>(view), std::get<2>(view)};
}

tttnn::AttentionOutput output(const View& view) {
  return {reinterpret_cast<std::uint16_t*>(std::get<0>(view)), std::get<1>(view), std::get<2>(view)};
}

// heads, kv_heads, tokens, dim
using Sizes = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t>;

tttnn::AttentionShape shape_of(const Sizes& sizes, float scale) {
  const auto [heads, kv_heads, tokens, dim] = sizes;
  return {heads, kv_heads, tokens, dim, scale};
}

}  // namespace

void bind_attention(py::module_& module) {
  using tttnn::Attention;
  module.def("attention_supported", &tttnn::attention_supported,
             "Say whether this processor has AVX-512 with bfloat16 products.");
  py::class_<Attention>(module, "Attention",
                        "Attention over bfloat16 tensors given by address and strides: causal and of one sequence, or "
                        "without a mask inside each of many. The caller keeps what the addresses point to alive.")
      .def(py::init([] {
        if (!tttnn::attention_supported())
          throw tttnn::Error(tttnn::ErrorCode::kDevice, "processor must have AVX-512 with bfloat16, and has not");
        return std::make_unique<Attention>(tttnn::AttentionKernels::kAvx512Bf16);
      }))
      .def(
          "forward",
          [](Attention& attention, const Sizes& sizes, float scale, const View& q, const View& k, const View& v,
             const View& out, std::uintptr_t lse, int max_threads) {
            // Safe without the GIL: only memory that the caller keeps alive is touched, no Python object.
            py::gil_scoped_release release;
            attention.forward(shape_of(sizes, scale), input(q), input(k), input(v), output(out),
                              reinterpret_cast<float*>(lse), tttnn::shared_pool(), max_threads);
          },
          py::arg("sizes"), py::arg("scale"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"),
          py::arg("max_threads") = 0, "Write out and lse. sizes: heads, kv_heads, tokens, dim.")
      .def(
          "backward",
          [](Attention& attention, const Sizes& sizes, float scale, const View& q, const View& k, const View& v,
             const View& out, std::uintptr_t lse, const View& dout, const View& dq, const View& dk, const View& dv,
             int max_threads) {
            // Safe without the GIL: only memory that the caller keeps alive is touched, no Python object.
            py::gil_scoped_release release;
            attention.backward(shape_of(sizes, scale), input(q), input(k), input(v), input(out),
                               reinterpret_cast<const float*>(lse), input(dout), output(dq), output(dk), output(dv),
                               tttnn::shared_pool(), max_threads);
          },
          py::arg("sizes"), py::arg("scale"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"),
          py::arg("dout"), py::arg("dq"), py::arg("dk"), py::arg("dv"), py::arg("max_threads") = 0,
          "Write the gradients of q, k and v for the gradient of out.")
      .def(
          "forward_packed",
          [](Attention& attention, const Sizes& sizes, float scale, const std::vector<std::int64_t>& offsets,
             const View& q, const View& k, const View& v, const View& out, int max_threads) {
            // Safe without the GIL: only memory that the caller keeps alive is touched, no Python object.
            py::gil_scoped_release release;
            attention.forward_packed(shape_of(sizes, scale), offsets, input(q), input(k), input(v), output(out),
                                     tttnn::shared_pool(), max_threads);
          },
          py::arg("sizes"), py::arg("scale"), py::arg("offsets"), py::arg("q"), py::arg("k"), py::arg("v"),
          py::arg("out"), py::arg("max_threads") = 0,
          "Write out; sequence i is the tokens from offsets[i] to offsets[i + 1], which see each other.");
}
