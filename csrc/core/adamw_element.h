// The arithmetic of adamw.h, for the processor and the device alike: adamw.cpp and the CUDA kernels (adamw.cu) are
// loops around it, and the core's tests run the kernels' loops on the processor.
//
// Every operation is an IEEE operation of its own, never fused with the next: with -ffp-contract=off here and
// -fmad=false there both give the same bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define TTTNN_BOTH __host__ __device__ __forceinline__
#else
#define TTTNN_BOTH inline __attribute__((always_inline))
#endif

namespace tttnn {

// Part of the norm's definition: changing one changes last bits.
inline constexpr std::size_t kAdamwPieceSize = 16384;  // elements that have a sum of their own
inline constexpr std::size_t kAdamwLanes = 32;         // partial sums of a piece: one per thread of a warp

// What is the same for all elements of one tensor in one step, but for the clip coefficient.
struct AdamwScalars {
  float decay;            // 1 - lr * weight_decay
  float one_beta1;        // 1 - beta1
  float beta2;            //
  float one_beta2;        // 1 - beta2
  float over_root_bias2;  // 1 / sqrt(1 - beta2^t)
  float epsilon;          //
  float minus_step;       // -lr / (1 - beta1^t)
};

// One tensor in one step, as a kernel reads it.
struct AdamwRow {
  const void* source;         // weights before the step
  float* p;                   // trained values after it: weights or masters
  std::uint16_t* rounded;     // their bfloat16 values: weights, or copies of them; or null
  float* m;                   //
  float* v;                   //
  const void* gradient;       // bfloat16 where `rounded` is given; null: the tensor is left alone
  std::uint64_t size;         // elements
  std::uint64_t first_piece;  // pieces of the tensors before it
  AdamwScalars scalars;
  std::uint8_t bfloat_source;  // else float32
  std::uint8_t fresh_moments;
};

// What the norm's kernel leaves for the update's.
struct AdamwTotals {
  double norm;  // of the whole gradient, before clipping
  float clip;   // min(1, clip_norm / (norm + 1e-6))
};

TTTNN_BOTH float adamw_widen(float value) { return value; }

TTTNN_BOTH float adamw_widen(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// To bfloat16, to nearest, ties to even, as torch rounds.
TTTNN_BOTH std::uint16_t adamw_narrow(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded);
}

// The tensor that a piece belongs to: the last whose first piece is not after it. Empty tensors have no pieces.
TTTNN_BOTH std::size_t adamw_row_of(const AdamwRow* rows, std::size_t count, std::uint64_t piece) {
  std::size_t low = 0;
  std::size_t high = count;
  while (high - low > 1) {
    const std::size_t middle = low + (high - low) / 2;
    if (rows[middle].first_piece <= piece) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Elements begin + lane, begin + lane + 32, ... of a piece: one of its 32 partial sums.
template <typename T>
TTTNN_BOTH double adamw_lane_sum(const T* gradient, std::size_t begin, std::size_t end, std::size_t lane) {
  double sum = 0.0;
#if defined(__CUDA_ARCH__)
#pragma unroll 8
#endif
  for (std::size_t i = begin + lane; i < end; i += kAdamwLanes) {
    const double g = adamw_widen(gradient[i]);
    sum += g * g;
  }
  return sum;
}

TTTNN_BOTH AdamwTotals adamw_totals(double square_sum, double clip_norm) {
  AdamwTotals totals;
  totals.norm = sqrt(square_sum);
  const double ratio = clip_norm / (totals.norm + 1e-6);
  totals.clip = static_cast<float>(ratio < 1.0 ? ratio : 1.0);
  return totals;
}

// One element. m and v are values before and after.
TTTNN_BOTH float adamw_update(float p, float g, float& m, float& v, float clip, const AdamwScalars& s) {
  g *= clip;
  p *= s.decay;
  m = m + s.one_beta1 * (g - m);
  v = v * s.beta2 + s.one_beta2 * g * g;
  const float denominator = sqrtf(v) * s.over_root_bias2 + s.epsilon;
  return p + s.minus_step * m / denominator;
}

// Trains element i of a tensor whose weights before the step are S and whose gradient is G.
template <typename S, typename G>
TTTNN_BOTH void adamw_element(const AdamwRow& row, float clip, std::size_t i) {
  float m = row.fresh_moments ? 0.0f : row.m[i];
  float v = row.fresh_moments ? 0.0f : row.v[i];
  const float before = adamw_widen(static_cast<const S*>(row.source)[i]);
  const float p = adamw_update(before, adamw_widen(static_cast<const G*>(row.gradient)[i]), m, v, clip, row.scalars);
  row.m[i] = m;
  row.v[i] = v;
  row.p[i] = p;
  if constexpr (sizeof(G) < sizeof(float)) row.rounded[i] = adamw_narrow(p);
}

}  // namespace tttnn
