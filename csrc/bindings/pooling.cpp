#include <build_info.h>
#include <error.h>
#include <pooling.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings.h"

namespace py = pybind11;

namespace {

using tttnn::Error;
using tttnn::ErrorCode;
using Mask = py::array_t<std::uint8_t, py::array::c_style>;
using Rows = py::array_t<std::int64_t, py::array::c_style>;
using Offsets = py::array_t<std::int64_t, py::array::c_style>;
using Out = py::array_t<float, py::array::c_style>;

tttnn::Pooling pooling_named(const std::string& name) {
  if (name == "mean") return tttnn::Pooling::kMean;
  if (name == "cls") return tttnn::Pooling::kCls;
  throw Error(ErrorCode::kInvalidArgument, "pooling must be mean or cls, got " + name);
}

tttnn::SimdLevel level_named(const std::string& name) {
  tttnn::SimdLevel level = tttnn::simd_level();
  if (name == "baseline") level = tttnn::SimdLevel::kBaseline;
  if (name == "x86-64-v2") level = tttnn::SimdLevel::kV2;
  if (name == "x86-64-v3") level = tttnn::SimdLevel::kV3;
  if (name == "x86-64-v4") level = tttnn::SimdLevel::kV4;
  if (level > tttnn::simd_level())
    throw Error(ErrorCode::kInvalidArgument, "level must be one this processor has, got " + name);
  return level;
}

tttnn::HiddenType type_of(const py::array& hidden) {
  if (py::isinstance<py::array_t<float>>(hidden)) return tttnn::HiddenType::kFloat32;
  if (py::isinstance<py::array_t<std::uint16_t>>(hidden)) return tttnn::HiddenType::kBFloat16;
  throw Error(ErrorCode::kInvalidArgument, "hidden must be float32, or uint16 holding bfloat16");
}

void require_rows(const Rows& rows, py::ssize_t count, const Out& out, py::ssize_t dim) {
  if (rows.ndim() != 1 || rows.shape(0) != count)
    throw Error(ErrorCode::kInvalidArgument, "rows must be (batch,) as hidden");
  if (out.ndim() != 2 || out.shape(1) != dim || !out.writeable())
    throw Error(ErrorCode::kInvalidArgument, "out must be writeable (rows, dim) as hidden");
  for (py::ssize_t i = 0; i < rows.shape(0); ++i)
    if (rows.at(i) < 0 || rows.at(i) >= out.shape(0))
      throw Error(ErrorCode::kOutOfRange, "row must be between 0 and " + std::to_string(out.shape(0) - 1) + ", got " +
                                              std::to_string(rows.at(i)));
}

// Shapes and types that Python's type hints cannot say.
tttnn::HiddenStates states_of(const py::array& hidden, const std::optional<Mask>& mask, const Rows& rows,
                              const Out& out) {
  const tttnn::HiddenType type = type_of(hidden);
  if (hidden.ndim() != 3 || (hidden.flags() & py::array::c_style) == 0)
    throw Error(ErrorCode::kInvalidArgument, "hidden must be contiguous (batch, tokens, dim)");
  if (mask && (mask->ndim() != 2 || mask->shape(0) != hidden.shape(0) || mask->shape(1) != hidden.shape(1)))
    throw Error(ErrorCode::kInvalidArgument, "mask must be (batch, tokens) as hidden");
  require_rows(rows, hidden.shape(0), out, hidden.shape(2));
  return tttnn::HiddenStates{hidden.data(),
                             type,
                             static_cast<std::size_t>(hidden.shape(0)),
                             static_cast<std::size_t>(hidden.shape(1)),
                             static_cast<std::size_t>(hidden.shape(2)),
                             mask ? mask->data() : nullptr};
}

tttnn::PackedStates packed_of(const py::array& hidden, const Offsets& offsets, const Rows& rows, const Out& out) {
  const tttnn::HiddenType type = type_of(hidden);
  if (hidden.ndim() != 2 || (hidden.flags() & py::array::c_style) == 0)
    throw Error(ErrorCode::kInvalidArgument, "hidden must be contiguous (tokens, dim)");
  if (offsets.ndim() != 1 || offsets.shape(0) < 1)
    throw Error(ErrorCode::kInvalidArgument, "offsets must be (texts + 1,)");
  for (py::ssize_t i = 0; i < offsets.shape(0); ++i)
    if (offsets.at(i) < (i == 0 ? 0 : offsets.at(i - 1)) || offsets.at(i) > hidden.shape(0))
      throw Error(ErrorCode::kInvalidArgument, "offsets must not fall and be between 0 and " +
                                                   std::to_string(hidden.shape(0)) + ", got " +
                                                   std::to_string(offsets.at(i)));
  require_rows(rows, offsets.shape(0) - 1, out, hidden.shape(1));
  return tttnn::PackedStates{hidden.data(), type, static_cast<std::size_t>(offsets.shape(0) - 1),
                             static_cast<std::size_t>(hidden.shape(1)), offsets.data()};
}

}  // namespace

void bind_pooling(py::module_& module) {
  module.def(
      "pool",
      [](const py::array& hidden, const std::optional<Mask>& mask, const Rows& rows, Out out,
         const std::string& pooling, bool normalize, int threads, const std::string& level) {
        const tttnn::HiddenStates states = states_of(hidden, mask, rows, out);
        const tttnn::PoolOptions options{pooling_named(pooling), normalize, threads, level_named(level)};
        float* to = out.mutable_data();
        const std::int64_t* at = rows.data();
        // The arguments hold the arrays, and nothing here touches Python objects.
        py::gil_scoped_release release;
        return tttnn::pool(states, at, to, options);
      },
      py::arg("hidden"), py::arg("mask").none(true), py::arg("rows"), py::arg("out").noconvert(), py::kw_only(),
      py::arg("pooling"), py::arg("normalize"), py::arg("threads") = 0, py::arg("level") = "auto",
      "Pool hidden states (batch, tokens, dim) into out[rows]; return the first batch row that is not finite, or -1.");

  module.def(
      "pool_packed",
      [](const py::array& hidden, const Offsets& offsets, const Rows& rows, Out out, const std::string& pooling,
         bool normalize, int threads, const std::string& level) {
        const tttnn::PackedStates states = packed_of(hidden, offsets, rows, out);
        const tttnn::PoolOptions options{pooling_named(pooling), normalize, threads, level_named(level)};
        float* to = out.mutable_data();
        const std::int64_t* at = rows.data();
        // The arguments hold the arrays, and nothing here touches Python objects.
        py::gil_scoped_release release;
        return tttnn::pool_packed(states, at, to, options);
      },
      py::arg("hidden"), py::arg("offsets"), py::arg("rows"), py::arg("out").noconvert(), py::kw_only(),
      py::arg("pooling"), py::arg("normalize"), py::arg("threads") = 0, py::arg("level") = "auto",
      "Pool hidden states (tokens, dim) of texts without padding into out[rows], text i being the tokens from "
      "offsets[i] to offsets[i + 1]; return the first text that is not finite, or -1.");

  module.def(
      "pool_reference",
      [](const py::array& hidden, const std::optional<Mask>& mask, const Rows& rows, Out out,
         const std::string& pooling, bool normalize) {
        const tttnn::HiddenStates states = states_of(hidden, mask, rows, out);
        tttnn::pool_reference(states, rows.data(), out.mutable_data(), {pooling_named(pooling), normalize});
      },
      py::arg("hidden"), py::arg("mask").none(true), py::arg("rows"), py::arg("out").noconvert(), py::kw_only(),
      py::arg("pooling"), py::arg("normalize"), "The formula of pool in plain loops, for tests.");

  module.def(
      "pool_cuda",
      [](std::uintptr_t hidden, bool bfloat16, std::size_t batch, std::size_t tokens, std::size_t dim,
         std::uintptr_t mask, std::uintptr_t rows, std::uintptr_t out, std::uintptr_t bad, const std::string& pooling,
         bool normalize, std::uintptr_t stream) {
        const tttnn::HiddenStates states{reinterpret_cast<const void*>(hidden),
                                         bfloat16 ? tttnn::HiddenType::kBFloat16 : tttnn::HiddenType::kFloat32,
                                         batch,
                                         tokens,
                                         dim,
                                         reinterpret_cast<const std::uint8_t*>(mask)};
        const tttnn::PoolOptions options{pooling_named(pooling), normalize};
        // Only addresses are used; the caller's tensors live until the stream has run.
        py::gil_scoped_release release;
        tttnn::pool_cuda(states, reinterpret_cast<const std::int64_t*>(rows), reinterpret_cast<float*>(out),
                         reinterpret_cast<std::int32_t*>(bad), options, reinterpret_cast<void*>(stream));
      },
      py::arg("hidden"), py::kw_only(), py::arg("bfloat16"), py::arg("batch"), py::arg("tokens"), py::arg("dim"),
      py::arg("mask"), py::arg("rows"), py::arg("out"), py::arg("bad"), py::arg("pooling"), py::arg("normalize"),
      py::arg("stream"), "Pool on a CUDA device; every buffer is the address of device memory.");
}
