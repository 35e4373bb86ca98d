// Vectors in fewer bytes than float32, and the distance of a float32 query from one: float16, or int8 with a scale.
//
// csrc/FORMAT.md describes the bytes. Kernels are chosen at run time; every one gives the same bits: float16 is made
// float32 exactly and added up as distance.h does, int8 is added up in whole numbers. Vectors need no alignment.
// Thread-safe: no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "build_info.h"
#include "distance.h"

namespace tttnn {

enum class CompactKind { kFloat16, kInt8 };

// Of a longer vector the products of codes might not fit 32 bits.
constexpr std::size_t kMostCompactDim = 65536;

// Bytes of one vector, a multiple of 4.
std::size_t compact_bytes(CompactKind kind, std::size_t dim) noexcept;

// Writes compact_bytes() bytes. Returns false where an element is too large for float16 (65,520 or more), or of int8
// the squared length too large for float32.
bool compact(CompactKind kind, const float* vector, std::size_t dim, std::byte* out) noexcept;

float half_to_float(std::uint16_t half) noexcept;
std::uint16_t float_to_half(float value) noexcept;  // to nearest, of two the even one; too large: infinity

// Whether this processor multiplies bytes in one instruction (AVX-512 VNNI).
bool has_byte_products() noexcept;

using ByteDotFn = std::int32_t (*)(const std::int8_t* a, const std::int8_t* b, std::size_t dim);
using HalfDistanceFn = float (*)(const std::byte* halves, const float* query, std::size_t dim);

// `byte_products`: only true where has_byte_products() is.
ByteDotFn byte_dot_function(SimdLevel level = simd_level(), bool byte_products = has_byte_products()) noexcept;
HalfDistanceFn half_distance_function(Metric metric, SimdLevel level = simd_level()) noexcept;

// The distance between two vectors that compact() wrote, as CompactQuery::distance; `dim` points to a std::size_t.
// `level` is of float16.
DistanceFn compact_distance_function(CompactKind kind, Metric metric, SimdLevel level = simd_level()) noexcept;

// A query made ready to be compared with compact vectors. It is copied or points to `query`, which must outlive it.
class CompactQuery {
 public:
  CompactQuery(CompactKind kind, Metric metric, const float* query, std::size_t dim);

  // As distance.h, of a vector that compact() wrote; for int8 an estimate, which for l2 may be below zero.
  float distance(const std::byte* vector) const;

 private:
  CompactKind kind_;
  Metric metric_;
  std::size_t dim_;
  const float* query_;
  HalfDistanceFn half_;
  ByteDotFn dot_;
  std::vector<std::byte> codes_;  // of int8: the query as compact() writes it
};

}  // namespace tttnn
