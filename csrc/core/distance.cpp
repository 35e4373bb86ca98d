#include "distance.h"

#include "distance_lanes.h"

namespace tttnn {

namespace {

using lanes::Ip;
using lanes::kLanes;
using lanes::L2;

template <typename Kind, typename Vector>
TTTNN_INLINE float distance(const float* a, const float* b, std::size_t dim) {
  Vector totals[kLanes * sizeof(float) / sizeof(Vector)] = {};
  std::size_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) lanes::add_lanes<Kind>(a + i, b + i, totals);
  if (i < dim) {  // what is left, padded with zeros
    float x[kLanes] = {}, y[kLanes] = {};
    for (std::size_t j = 0; i + j < dim; ++j) {
      x[j] = a[i + j];
      y[j] = b[i + j];
    }
    lanes::add_lanes<Kind>(x, y, totals);
  }
  return lanes::finish_lanes<Kind>(totals);
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
