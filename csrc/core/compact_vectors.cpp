#include "compact_vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "distance_lanes.h"

namespace tttnn {

namespace {

using lanes::kLanes;

constexpr std::size_t kCodes = 8;  // bytes before the codes: scale, squared length

template <typename T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

TTTNN_INLINE float widen(std::uint16_t half) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7FFFu) << 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof(value));
  value *= 0x1p112f;  // the difference of the exponents' biases; exact, and right for subnormal numbers too
  return (half & 0x8000u) != 0 ? -value : value;
}

TTTNN_INLINE void widen32(const std::byte* from, float* to) {
  std::uint16_t halves[kLanes];
  std::memcpy(halves, from, sizeof(halves));
  for (std::size_t i = 0; i < kLanes; ++i) to[i] = widen(halves[i]);
}

#if defined(__x86_64__)
#define TTTNN_TARGET_HALF3 __attribute__((target("avx2,f16c")))
#define TTTNN_TARGET_HALF4 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c")))

TTTNN_INLINE TTTNN_TARGET_HALF3 void widen32_v3(const std::byte* from, float* to) {
  for (std::size_t i = 0; i < kLanes; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i))));
}
#else
#define TTTNN_TARGET_HALF3
#define TTTNN_TARGET_HALF4
#define widen32_v3 widen32
#endif

#define TTTNN_HALF_DISTANCE(name, Vector, target, widen_lanes)                      \
  template <typename Kind>                                                          \
  target float name(const std::byte* halves, const float* query, std::size_t dim) { \
    Vector totals[kLanes * sizeof(float) / sizeof(Vector)] = {};                    \
    float wide[kLanes];                                                             \
    std::size_t i = 0;                                                              \
    for (; i + kLanes <= dim; i += kLanes) {                                        \
      widen_lanes(halves + 2 * i, wide);                                            \
      lanes::add_lanes<Kind>(wide, query + i, totals);                              \
    }                                                                               \
    if (i < dim) { /* what is left, padded with zeros */                            \
      float x[kLanes] = {}, y[kLanes] = {};                                         \
      for (std::size_t j = 0; i + j < dim; ++j) {                                   \
        x[j] = widen(read<std::uint16_t>(halves + 2 * (i + j)));                    \
        y[j] = query[i + j];                                                        \
      }                                                                             \
      lanes::add_lanes<Kind>(x, y, totals);                                         \
    }                                                                               \
    return lanes::finish_lanes<Kind>(totals);                                       \
  }
TTTNN_HALF_DISTANCE(half_baseline, lanes::Four, , widen32)
TTTNN_HALF_DISTANCE(half_v2, lanes::Four, TTTNN_TARGET_V2, widen32)
TTTNN_HALF_DISTANCE(half_v3, lanes::Eight, TTTNN_TARGET_HALF3, widen32_v3)
TTTNN_HALF_DISTANCE(half_v4, lanes::Sixteen, TTTNN_TARGET_HALF4, widen32_v3)
#undef TTTNN_HALF_DISTANCE

// The same of two vectors of float16, the first widened like the second.
#define TTTNN_HALF_PAIR(name, Vector, target, widen_lanes)                                            \
  template <typename Kind>                                                                            \
  target float name(const void* first, const void* second, const void* size) {                        \
    const auto *a = static_cast<const std::byte*>(first), *b = static_cast<const std::byte*>(second); \
    const std::size_t dim = *static_cast<const std::size_t*>(size);                                   \
    Vector totals[kLanes * sizeof(float) / sizeof(Vector)] = {};                                      \
    float x[kLanes], y[kLanes];                                                                       \
    std::size_t i = 0;                                                                                \
    for (; i + kLanes <= dim; i += kLanes) {                                                          \
      widen_lanes(a + 2 * i, x);                                                                      \
      widen_lanes(b + 2 * i, y);                                                                      \
      lanes::add_lanes<Kind>(x, y, totals);                                                           \
    }                                                                                                 \
    if (i < dim) { /* what is left, padded with zeros */                                              \
      for (std::size_t j = 0; j < kLanes; ++j) {                                                      \
        x[j] = i + j < dim ? widen(read<std::uint16_t>(a + 2 * (i + j))) : 0.0f;                      \
        y[j] = i + j < dim ? widen(read<std::uint16_t>(b + 2 * (i + j))) : 0.0f;                      \
      }                                                                                               \
      lanes::add_lanes<Kind>(x, y, totals);                                                           \
    }                                                                                                 \
    return lanes::finish_lanes<Kind>(totals);                                                         \
  }
TTTNN_HALF_PAIR(pair_baseline, lanes::Four, , widen32)
TTTNN_HALF_PAIR(pair_v2, lanes::Four, TTTNN_TARGET_V2, widen32)
TTTNN_HALF_PAIR(pair_v3, lanes::Eight, TTTNN_TARGET_HALF3, widen32_v3)
TTTNN_HALF_PAIR(pair_v4, lanes::Sixteen, TTTNN_TARGET_HALF4, widen32_v3)
#undef TTTNN_HALF_PAIR

// Without instructions for float16 a level above v2 has no kernel of its own.
SimdLevel half_level(SimdLevel level) noexcept {
#if defined(__x86_64__)
  if (level >= SimdLevel::kV3 && !__builtin_cpu_supports("f16c")) return SimdLevel::kV2;
#endif
  return level;
}

template <typename Kind>
DistanceFn choose_pair(SimdLevel level) noexcept {
  switch (half_level(level)) {
    case SimdLevel::kV4:
      return pair_v4<Kind>;
    case SimdLevel::kV3:
      return pair_v3<Kind>;
    case SimdLevel::kV2:
      return pair_v2<Kind>;
    case SimdLevel::kBaseline:
      break;
  }
  return pair_baseline<Kind>;
}

template <typename Kind>
HalfDistanceFn choose_half(SimdLevel level) noexcept {
  switch (half_level(level)) {
    case SimdLevel::kV4:
      return half_v4<Kind>;
    case SimdLevel::kV3:
      return half_v3<Kind>;
    case SimdLevel::kV2:
      return half_v2<Kind>;
    case SimdLevel::kBaseline:
      break;
  }
  return half_baseline<Kind>;
}

// The rest of a kernel's vectors, and all of them without its instructions.
TTTNN_INLINE std::int32_t dot_from(const std::int8_t* a, const std::int8_t* b, std::size_t begin, std::size_t dim) {
  std::int32_t total = 0;
  for (std::size_t i = begin; i < dim; ++i) total += static_cast<std::int32_t>(a[i]) * b[i];
  return total;
}

std::int32_t dot_baseline(const std::int8_t* a, const std::int8_t* b, std::size_t dim) {
  return dot_from(a, b, 0, dim);
}

#if defined(__x86_64__)
TTTNN_TARGET_V2 std::int32_t dot_v2(const std::int8_t* a, const std::int8_t* b, std::size_t dim) {
  return dot_from(a, b, 0, dim);
}

TTTNN_INLINE TTTNN_TARGET_V3 void add_words(const std::int8_t* a, const std::int8_t* b, __m256i& sum) {
  const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
  const __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
}

TTTNN_INLINE TTTNN_TARGET_V3 std::int32_t add_up(const __m256i& sum) {
  std::int32_t eight[8];
  std::memcpy(eight, &sum, sizeof(eight));
  std::uint32_t total = 0;
  for (const std::int32_t part : eight) total += static_cast<std::uint32_t>(part);
  return static_cast<std::int32_t>(total);
}

TTTNN_TARGET_V3 std::int32_t dot_v3(const std::int8_t* a, const std::int8_t* b, std::size_t dim) {
  __m256i even = _mm256_setzero_si256(), odd = even;
  std::size_t i = 0;
  for (; i + 32 <= dim; i += 32) {
    add_words(a + i, b + i, even);
    add_words(a + i + 16, b + i + 16, odd);
  }
  even = _mm256_add_epi32(even, odd);
  return add_up(even) + dot_from(a, b, i, dim);
}

// The instruction multiplies an unsigned byte by a signed one: a + 128 takes a's place, and 128 x the sum of b goes.
__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))) std::int32_t dot_vnni(
    const std::int8_t* a, const std::int8_t* b, std::size_t dim) {
  const __m256i high = _mm256_set1_epi8(static_cast<char>(0x80)), ones = _mm256_set1_epi8(1);
  __m256i sum = _mm256_setzero_si256(), sum_b = sum;
  std::size_t i = 0;
  for (; i + 32 <= dim; i += 32) {
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i));
    const __m256i x = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)), high);
    sum = _mm256_dpbusd_epi32(sum, x, y);
    sum_b = _mm256_dpbusd_epi32(sum_b, ones, y);
  }
  sum = _mm256_sub_epi32(sum, _mm256_slli_epi32(sum_b, 7));
  return add_up(sum) + dot_from(a, b, i, dim);
}
#endif

float byte_distance(Metric metric, ByteDotFn dot, const std::byte* a, const std::byte* b, std::size_t dim) {
  const std::int32_t products =
      dot(reinterpret_cast<const std::int8_t*>(a + kCodes), reinterpret_cast<const std::int8_t*>(b + kCodes), dim);
  const float product = read<float>(a) * read<float>(b) * static_cast<float>(products);
  if (metric == Metric::kIp) return 1.0f - product;
  return (read<float>(a + 4) + read<float>(b + 4)) - 2.0f * product;
}

template <Metric kMetric>
float byte_pair(const void* a, const void* b, const void* dim) {
  static const ByteDotFn dot = byte_dot_function();
  return byte_distance(kMetric, dot, static_cast<const std::byte*>(a), static_cast<const std::byte*>(b),
                       *static_cast<const std::size_t*>(dim));
}

}  // namespace

std::size_t compact_bytes(CompactKind kind, std::size_t dim) noexcept {
  const std::size_t bytes = kind == CompactKind::kInt8 ? kCodes + dim : 2 * dim;
  return (bytes + 3) / 4 * 4;
}

float half_to_float(std::uint16_t half) noexcept {
  if ((half & 0x7C00u) == 0x7C00u) {  // infinities and what is no number, which a kernel never meets
    const float value = (half & 0x3FFu) != 0 ? NAN : INFINITY;
    return (half & 0x8000u) != 0 ? -value : value;
  }
  return widen(half);
}

std::uint16_t float_to_half(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);
  if (bits >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // 65,520 and more
  std::uint32_t kept, lost, lost_bits;
  if (bits < 0x38800000u) {  // below 2^-14: subnormal, in steps of 2^-24
    const std::uint32_t exponent = bits >> 23;
    if (exponent < 102) return sign;  // below 2^-25
    lost_bits = 126 - exponent;
    const std::uint32_t mantissa = (bits & 0x7FFFFFu) | 0x800000u;
    kept = mantissa >> lost_bits;
    lost = mantissa & ((1u << lost_bits) - 1);
  } else {
    lost_bits = 13;
    kept = (bits - 0x38000000u) >> 13;
    lost = bits & 0x1FFFu;
  }
  const std::uint32_t half = 1u << (lost_bits - 1);
  if (lost > half || (lost == half && (kept & 1u) != 0)) ++kept;
  return static_cast<std::uint16_t>(sign | kept);
}

bool compact(CompactKind kind, const float* vector, std::size_t dim, std::byte* out) noexcept {
  std::memset(out, 0, compact_bytes(kind, dim));
  if (kind == CompactKind::kFloat16) {
    for (std::size_t i = 0; i < dim; ++i) {
      const std::uint16_t half = float_to_half(vector[i]);
      if ((half & 0x7C00u) == 0x7C00u) return false;
      std::memcpy(out + 2 * i, &half, sizeof(half));
    }
    return true;
  }
  float largest = 0.0f;
  double length = 0.0;
  for (std::size_t i = 0; i < dim; ++i) {
    largest = std::max(largest, std::fabs(vector[i]));
    length += static_cast<double>(vector[i]) * vector[i];
  }
  const float scale = largest / 127.0f;
  const auto length_bits = static_cast<float>(length);
  std::memcpy(out, &scale, sizeof(scale));
  std::memcpy(out + 4, &length_bits, sizeof(length_bits));
  if (!std::isfinite(length_bits)) return false;
  if (scale == 0.0f) return true;  // all is zero, or too small to be told from it
  for (std::size_t i = 0; i < dim; ++i) {
    const float code = std::nearbyint(vector[i] / scale);
    const auto byte = static_cast<std::int8_t>(std::min(127.0f, std::max(-127.0f, code)));
    std::memcpy(out + kCodes + i, &byte, sizeof(byte));
  }
  return true;
}

bool has_byte_products() noexcept {
#if defined(__x86_64__)
  return simd_level() == SimdLevel::kV4 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

ByteDotFn byte_dot_function(SimdLevel level, bool byte_products) noexcept {
#if defined(__x86_64__)
  if (level == SimdLevel::kV4 && byte_products) return dot_vnni;
  if (level >= SimdLevel::kV3) return dot_v3;
  if (level == SimdLevel::kV2) return dot_v2;
#else
  static_cast<void>(level);
  static_cast<void>(byte_products);
#endif
  return dot_baseline;
}

HalfDistanceFn half_distance_function(Metric metric, SimdLevel level) noexcept {
  return metric == Metric::kL2 ? choose_half<lanes::L2>(level) : choose_half<lanes::Ip>(level);
}

DistanceFn compact_distance_function(CompactKind kind, Metric metric, SimdLevel level) noexcept {
  if (kind == CompactKind::kFloat16)
    return metric == Metric::kL2 ? choose_pair<lanes::L2>(level) : choose_pair<lanes::Ip>(level);
  return metric == Metric::kL2 ? byte_pair<Metric::kL2> : byte_pair<Metric::kIp>;
}

CompactQuery::CompactQuery(CompactKind kind, Metric metric, const float* query, std::size_t dim)
    : kind_(kind),
      metric_(metric),
      dim_(dim),
      query_(query),
      half_(half_distance_function(metric)),
      dot_(byte_dot_function()) {
  if (kind_ != CompactKind::kInt8) return;
  codes_.resize(compact_bytes(kind_, dim_));
  compact(kind_, query, dim_, codes_.data());
}

float CompactQuery::distance(const std::byte* vector) const {
  if (kind_ == CompactKind::kFloat16) return half_(vector, query_, dim_);
  return byte_distance(metric_, dot_, vector, codes_.data(), dim_);
}

}  // namespace tttnn
