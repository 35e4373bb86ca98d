#include "distance.h"

#include "lanes.h"

namespace tttnn {

namespace {

constexpr std::size_t kLanes = 32;  // sums in flight, whatever the width of a register

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

template <typename Kind, typename Vector>
TTTNN_INLINE void add_lanes(const float* a, const float* b, Vector* totals) {
  constexpr std::size_t width = sizeof(Vector) / sizeof(float);
#pragma GCC unroll 8
  for (std::size_t j = 0; j < kLanes / width; ++j) {
    Vector x, y;
    lanes::load(a + j * width, x);
    lanes::load(b + j * width, y);
    Kind::add(x, y, totals[j]);
  }
}

template <typename Kind, typename Vector>
TTTNN_INLINE float distance(const float* a, const float* b, std::size_t dim) {
  constexpr std::size_t width = sizeof(Vector) / sizeof(float);
  constexpr std::size_t half = kLanes / width / 2;
  Vector totals[2 * half] = {};
  std::size_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) add_lanes<Kind>(a + i, b + i, totals);
  if (i < dim) {  // what is left, padded with zeros
    float x[kLanes] = {}, y[kLanes] = {};
    for (std::size_t j = 0; i + j < dim; ++j) {
      x[j] = a[i + j];
      y[j] = b[i + j];
    }
    add_lanes<Kind>(x, y, totals);
  }
  float sixteen[kLanes / 2];
#pragma GCC unroll 4
  for (std::size_t j = 0; j < half; ++j) {
    totals[j] += totals[j + half];
    lanes::store(totals[j], sixteen + j * width);
  }
  return Kind::finish(lanes::sum(sixteen));
}

#define TTTNN_DISTANCE(name, vector, target)                                                  \
  template <typename Kind>                                                                    \
  target float name(const void* a, const void* b, const void* dim) {                          \
    return distance<Kind, vector>(static_cast<const float*>(a), static_cast<const float*>(b), \
                                  *static_cast<const std::size_t*>(dim));                     \
  }
TTTNN_DISTANCE(distance_baseline, lanes::Four, )
TTTNN_DISTANCE(distance_v2, lanes::Four, TTTNN_TARGET_V2)
TTTNN_DISTANCE(distance_v3, lanes::Eight, TTTNN_TARGET_V3)
TTTNN_DISTANCE(distance_v4, lanes::Sixteen, TTTNN_TARGET_V4)
#undef TTTNN_DISTANCE

template <typename Kind>
DistanceFn choose(SimdLevel level) noexcept {
  switch (level) {
    case SimdLevel::kV4:
      return distance_v4<Kind>;
    case SimdLevel::kV3:
      return distance_v3<Kind>;
    case SimdLevel::kV2:
      return distance_v2<Kind>;
    case SimdLevel::kBaseline:
      break;
  }
  return distance_baseline<Kind>;
}

}  // namespace

DistanceFn distance_function(Metric metric, SimdLevel level) noexcept {
  return metric == Metric::kL2 ? choose<L2>(level) : choose<Ip>(level);
}

}  // namespace tttnn
