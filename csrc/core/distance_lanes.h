// What the distance kernels share: the two formulas, 32 sums in flight whatever the width of a register, and the order
// in which they are added up (lanes.h).
#pragma once

#include "lanes.h"

namespace tttnn::lanes {

constexpr std::size_t kLanes = 32;

struct L2 {
  template <typename Vector>
  TTTNN_INLINE static void add(const Vector& a, const Vector& b, Vector& total) {
    const Vector difference = a - b;
    total += difference * difference;
  }
  TTTNN_INLINE static float finish(float total) { return total; }
};

struct Ip {
  template <typename Vector>
  TTTNN_INLINE static void add(const Vector& a, const Vector& b, Vector& total) {
    total += a * b;
  }
  TTTNN_INLINE static float finish(float total) { return 1.0f - total; }
};

// Adds 32 numbers of a and b to the totals.
template <typename Kind, typename Vector>
TTTNN_INLINE void add_lanes(const float* a, const float* b, Vector* totals) {
  constexpr std::size_t width = sizeof(Vector) / sizeof(float);
#pragma GCC unroll 8
  for (std::size_t j = 0; j < kLanes / width; ++j) {
    Vector x, y;
    load(a + j * width, x);
    load(b + j * width, y);
    Kind::add(x, y, totals[j]);
  }
}

// Adds up the totals, which are changed.
template <typename Kind, typename Vector>
TTTNN_INLINE float finish_lanes(Vector* totals) {
  constexpr std::size_t width = sizeof(Vector) / sizeof(float);
  constexpr std::size_t half = kLanes / width / 2;
  float sixteen[kLanes / 2];
#pragma GCC unroll 4
  for (std::size_t j = 0; j < half; ++j) {
    totals[j] += totals[j + half];
    store(totals[j], sixteen + j * width);
  }
  return Kind::finish(sum(sixteen));
}

}  // namespace tttnn::lanes
