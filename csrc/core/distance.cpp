#include "distance.h"

#include "lanes.h"

namespace tttnn {

namespace {

using lanes::Floats;
using lanes::kWidth;

struct L2 {
  TTTNN_INLINE static void add(const Floats& a, const Floats& b, Floats& total) {
    const Floats difference = a - b;
    total += difference * difference;
  }
  TTTNN_INLINE static float finish(float total) { return total; }
};

struct Ip {
  TTTNN_INLINE static void add(const Floats& a, const Floats& b, Floats& total) { total += a * b; }
  TTTNN_INLINE static float finish(float total) { return 1.0f - total; }
};

template <typename Kind>
TTTNN_INLINE float distance(const float* a, const float* b, std::size_t dim) {
  Floats even = {}, odd = {}, x, y;
  std::size_t i = 0;
  for (; i + 2 * kWidth <= dim; i += 2 * kWidth) {
    lanes::load(a + i, x);
    lanes::load(b + i, y);
    Kind::add(x, y, even);
    lanes::load(a + i + kWidth, x);
    lanes::load(b + i + kWidth, y);
    Kind::add(x, y, odd);
  }
  for (; i < dim; i += kWidth) {  // what is left, padded with zeros
    const std::size_t left = dim - i < kWidth ? dim - i : kWidth;
    x = Floats{};
    y = Floats{};
    std::memcpy(&x, a + i, left * sizeof(float));
    std::memcpy(&y, b + i, left * sizeof(float));
    Kind::add(x, y, even);
  }
  even += odd;
  return Kind::finish(lanes::sum(even));
}

#define TTTNN_DISTANCE(name, target)                                                  \
  template <typename Kind>                                                            \
  target float name(const void* a, const void* b, const void* dim) {                  \
    return distance<Kind>(static_cast<const float*>(a), static_cast<const float*>(b), \
                          *static_cast<const std::size_t*>(dim));                     \
  }
TTTNN_DISTANCE(distance_baseline, )
TTTNN_DISTANCE(distance_v2, TTTNN_TARGET_V2)
TTTNN_DISTANCE(distance_v3, TTTNN_TARGET_V3)
TTTNN_DISTANCE(distance_v4, TTTNN_TARGET_V4)
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
