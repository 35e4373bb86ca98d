// Float vectors with one fixed order of addition: a kernel built for any SIMD level gives the same bits.
//
// A kernel is written once as an always-inline function and instantiated under a TTTNN_TARGET for each x86-64 level.
// No fused multiply-add is used (-ffp-contract=off), because only some levels have it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tttnn::lanes {

typedef float Four __attribute__((vector_size(4 * sizeof(float))));
typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
typedef float Sixteen __attribute__((vector_size(16 * sizeof(float))));

#define TTTNN_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define TTTNN_TARGET_V2 __attribute__((target("sse4.2")))
#define TTTNN_TARGET_V3 __attribute__((target("avx2")))
#define TTTNN_TARGET_V4 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define TTTNN_TARGET_V2
#define TTTNN_TARGET_V3
#define TTTNN_TARGET_V4
#endif

// Vectors are passed by reference: passing them by value has another ABI at each SIMD level.
template <typename Vector>
TTTNN_INLINE void load(const float* from, Vector& to) {
  std::memcpy(&to, from, sizeof(to));
}
template <typename Vector>
TTTNN_INLINE void store(const Vector& from, float* to) {
  std::memcpy(to, &from, sizeof(from));
}

// Adds sixteen floats in a tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1. Written out, since a loop would not be unrolled.
TTTNN_INLINE float sum(const float* sixteen) {
  Four a, b, c, d;
  load(sixteen, a);
  load(sixteen + 4, b);
  load(sixteen + 8, c);
  load(sixteen + 12, d);
  a += c;
  b += d;
  a += b;
  return (a[0] + a[2]) + (a[1] + a[3]);
}

}  // namespace tttnn::lanes
