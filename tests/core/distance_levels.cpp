// Distances: close to double precision, and the same bits at every SIMD level, for any dimension and alignment.
#include <distance.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  int failures = 0;
  for (std::size_t dim = 1; dim < 140; ++dim) {
    for (std::size_t offset = 0; offset < 3; ++offset) {
      std::vector<float> a(dim + offset), b(dim);
      for (float& value : a) value = normal(random);
      for (float& value : b) value = normal(random);
      double l2 = 0.0, ip = 1.0;
      for (std::size_t i = 0; i < dim; ++i) {
        const double difference = static_cast<double>(a[offset + i]) - b[i];
        l2 += difference * difference;
        ip -= static_cast<double>(a[offset + i]) * b[i];
      }
      for (const auto metric : {tttnn::Metric::kL2, tttnn::Metric::kIp}) {
        const double expected = metric == tttnn::Metric::kL2 ? l2 : ip;
        const float first =
            tttnn::distance_function(metric, tttnn::SimdLevel::kBaseline)(a.data() + offset, b.data(), &dim);
        if (std::fabs(first - expected) > 1e-6 * (10.0 + 4.0 * static_cast<double>(dim))) ++failures;
        for (int level = 1; level <= static_cast<int>(tttnn::simd_level()); ++level)
          if (tttnn::distance_function(metric, static_cast<tttnn::SimdLevel>(level))(a.data() + offset, b.data(),
                                                                                     &dim) != first)
            ++failures;
      }
    }
  }
  if (failures > 0) std::fprintf(stderr, "distance: %d of the comparisons failed\n", failures);
  return failures == 0 ? 0 : 1;
}
