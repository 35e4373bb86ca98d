// Compact vectors: float16 as exact as its format, int8 within its step, products exact, and the same bits at every
// SIMD level, for any dimension and alignment.
#include <compact_vectors.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

int failures = 0;

void check(bool good, const std::string& what) {
  if (good) return;
  if (++failures <= 20) std::fprintf(stderr, "compact vectors: %s\n", what.c_str());
}

void halves() {
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    const auto half = static_cast<std::uint16_t>(i);
    const float value = tttnn::half_to_float(half);
    const int exponent = static_cast<int>(i >> 10 & 31);
    if (exponent == 31) {
      check((i & 0x3FF) != 0 ? std::isnan(value) : std::isinf(value), "half " + std::to_string(i) + " is not finite");
      continue;
    }
    const double steps = exponent == 0 ? (i & 0x3FF) : (i & 0x3FF) + 1024;
    const double expected = std::ldexp(steps, std::max(exponent, 1) - 25) * ((i & 0x8000) != 0 ? -1 : 1);
    check(static_cast<double>(value) == expected, "half " + std::to_string(i) + " has a wrong value");
    check(tttnn::float_to_half(value) == half, "half " + std::to_string(i) + " does not come back");
    // Between this and the next: the nearer one, and in the middle the even one.
    if ((i & 0x7FFF) >= 0x7BFF) continue;
    const float next = tttnn::half_to_float(static_cast<std::uint16_t>(i + 1));
    const float middle = (value + next) / 2;
    check(tttnn::float_to_half(std::nextafter(middle, value)) == half, "below the middle after " + std::to_string(i));
    check(tttnn::float_to_half(std::nextafter(middle, next)) == i + 1, "above the middle after " + std::to_string(i));
    check(tttnn::float_to_half(middle) == i + (i & 1), "the middle after " + std::to_string(i));
  }
  check(tttnn::float_to_half(65519.0f) == 0x7BFF && tttnn::float_to_half(65520.0f) == 0x7C00, "the largest half");
  const float large[2] = {1.0f, -65520.0f};
  std::byte out[4];
  check(!tttnn::compact(tttnn::CompactKind::kFloat16, large, 2, out), "a number too large for float16 was taken");
}

void products(std::mt19937& random) {
  std::uniform_int_distribution<int> codes(-128, 127);
  const bool modes[] = {false, true};
  for (std::size_t dim = 1; dim < 300; ++dim) {
    for (std::size_t offset = 0; offset < 3; ++offset) {
      std::vector<std::int8_t> a(dim + offset), b(dim);
      for (auto& code : a) code = static_cast<std::int8_t>(dim % 7 == 0 ? -128 : codes(random));
      for (auto& code : b) code = static_cast<std::int8_t>(dim % 7 == 0 ? 127 : codes(random));
      std::int64_t expected = 0;
      for (std::size_t i = 0; i < dim; ++i) expected += static_cast<std::int64_t>(a[offset + i]) * b[i];
      for (int level = 0; level <= static_cast<int>(tttnn::simd_level()); ++level)
        for (const bool products : modes) {
          if (products && !tttnn::has_byte_products()) continue;
          const auto dot = tttnn::byte_dot_function(static_cast<tttnn::SimdLevel>(level), products);
          check(dot(a.data() + offset, b.data(), dim) == expected, "a product of bytes, dim " + std::to_string(dim));
        }
    }
  }
}

void distances(std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (std::size_t dim = 1; dim < 140; ++dim) {
    std::vector<float> a(dim), q(dim);
    for (float& value : a) value = normal(random);
    for (float& value : q) value = normal(random);
    double squares_a = 0.0, squares_q = 0.0, largest_a = 0.0, largest_q = 0.0, sum_a = 0.0, sum_q = 0.0;
    for (std::size_t i = 0; i < dim; ++i) {
      squares_a += static_cast<double>(a[i]) * a[i];
      squares_q += static_cast<double>(q[i]) * q[i];
      sum_a += std::fabs(a[i]);
      sum_q += std::fabs(q[i]);
      largest_a = std::max(largest_a, std::fabs(static_cast<double>(a[i])));
      largest_q = std::max(largest_q, std::fabs(static_cast<double>(q[i])));
    }
    for (const auto kind : {tttnn::CompactKind::kFloat16, tttnn::CompactKind::kInt8}) {
      const std::size_t size = tttnn::compact_bytes(kind, dim);
      std::vector<std::byte> bytes(size + 1);
      check(tttnn::compact(kind, a.data(), dim, bytes.data() + 1), "a vector was refused");
      for (const auto metric : {tttnn::Metric::kL2, tttnn::Metric::kIp}) {
        const bool l2 = metric == tttnn::Metric::kL2;
        double expected = l2 ? 0.0 : 1.0, bound;
        for (std::size_t i = 0; i < dim; ++i) {
          double value = a[i];
          if (kind == tttnn::CompactKind::kFloat16) value = tttnn::half_to_float(tttnn::float_to_half(a[i]));
          expected += l2 ? (value - q[i]) * (value - q[i]) : -value * q[i];
        }
        if (kind == tttnn::CompactKind::kFloat16) {
          bound = 1e-6 * (10.0 + 4.0 * static_cast<double>(dim));  // of adding up in float32
        } else {
          // Each code is off by half a step at most; so is the query's.
          const double step_a = largest_a / 127 / 2, step_q = largest_q / 127 / 2;
          bound = (l2 ? 2.0 : 1.0) * (step_a * sum_q + step_q * sum_a + step_a * step_q * static_cast<double>(dim)) +
                  1e-5 * (1.0 + squares_a + squares_q);
        }
        const tttnn::CompactQuery query(kind, metric, q.data(), dim);
        const float found = query.distance(bytes.data() + 1);
        check(std::fabs(found - expected) <= bound, "a distance, dim " + std::to_string(dim));
        if (kind == tttnn::CompactKind::kFloat16)
          for (int level = 0; level <= static_cast<int>(tttnn::simd_level()); ++level)
            check(tttnn::half_distance_function(metric, static_cast<tttnn::SimdLevel>(level))(bytes.data() + 1,
                                                                                              q.data(), dim) == found,
                  "the bits of level " + std::to_string(level));
        // Of two compact vectors: the same as of one and the other made float32 again.
        std::vector<std::byte> other(size);
        std::vector<float> wide(dim);
        check(tttnn::compact(kind, q.data(), dim, other.data()), "a query was refused");
        if (kind == tttnn::CompactKind::kInt8)
          check(tttnn::compact_distance_function(kind, metric)(bytes.data() + 1, other.data(), &dim) == found,
                "the distance of two vectors of bytes");
        for (std::size_t i = 0; i < dim; ++i) wide[i] = tttnn::half_to_float(tttnn::float_to_half(q[i]));
        if (kind == tttnn::CompactKind::kFloat16)
          for (int level = 0; level <= static_cast<int>(tttnn::simd_level()); ++level)
            check(tttnn::compact_distance_function(kind, metric, static_cast<tttnn::SimdLevel>(level))(
                      other.data(), bytes.data() + 1, &dim) ==
                      tttnn::half_distance_function(metric)(bytes.data() + 1, wide.data(), dim),
                  "the distance of two vectors of float16, level " + std::to_string(level));
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  halves();
  products(random);
  distances(random);
  const std::vector<float> nothing(10, 0.0f);
  std::byte out[20];
  check(tttnn::compact(tttnn::CompactKind::kInt8, nothing.data(), 10, out), "a vector of zeros was refused");
  check(tttnn::CompactQuery(tttnn::CompactKind::kInt8, tttnn::Metric::kL2, nothing.data(), 10).distance(out) == 0.0f,
        "zeros are not at distance 0 from zeros");
  return failures == 0 ? 0 : 1;
}
