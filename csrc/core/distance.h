// Distances between float vectors, in kernels chosen at run time by simd_level(); smaller is nearer.
//
// Every level gives the same bits (lanes.h), so an index built on one processor is the index built on any other.
// Vectors need no alignment. Thread-safe: no state.
#pragma once

#include <cstddef>

#include "build_info.h"

namespace tttnn {

enum class Metric {
  kL2,  // squared Euclidean distance
  kIp,  // 1 - inner product
};

// `dim` points to a std::size_t: the signature hnswlib calls.
using DistanceFn = float (*)(const void* a, const void* b, const void* dim);

DistanceFn distance_function(Metric metric, SimdLevel level = simd_level()) noexcept;

}  // namespace tttnn
