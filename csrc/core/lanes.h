// Thirty-two float lanes with one fixed order of addition: a kernel built for any SIMD level gives the same bits.
//
// A kernel is written once as an always-inline function over Lanes and instantiated by TTTNN_LANES_KERNELS for each
// x86-64 level, where the compiler turns a Lanes into two, four or eight registers. No fused multiply-add is used
// (-ffp-contract=off), because only some levels have it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tttnn::lanes {

constexpr std::size_t kWidth = 16;  // floats in one vector; kernels keep two of them in flight

typedef float Floats __attribute__((vector_size(kWidth * sizeof(float))));
typedef std::uint32_t Words __attribute__((vector_size(kWidth * sizeof(std::uint32_t))));

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
TTTNN_INLINE void load(const void* from, Floats& to) { std::memcpy(&to, from, sizeof(to)); }
TTTNN_INLINE void store(const Floats& from, void* to) { std::memcpy(to, &from, sizeof(from)); }

// Adds the sixteen lanes in a tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
TTTNN_INLINE float sum(const Floats& lanes) {
  float values[kWidth];
  store(lanes, values);
  for (std::size_t half = kWidth / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

}  // namespace tttnn::lanes
