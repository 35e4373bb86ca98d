// Masked mean (or first-token) pooling of hidden states, fused with L2 normalisation, straight into output rows.
//
// The caller owns every buffer and keeps it alive and unchanged during the call. Safe to call from several threads.
// Sums are in float32, token after token, so the result does not depend on the SIMD level or on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "build_info.h"

namespace tttnn {

enum class HiddenType { kFloat32, kBFloat16 };
enum class Pooling { kMean, kCls };

struct HiddenStates {
  const void* data;  // hidden (batch, tokens, dim), contiguous
  HiddenType type;
  std::size_t batch;
  std::size_t tokens;
  std::size_t dim;
  const std::uint8_t* mask;  // mask (batch, tokens), nonzero where a token is real; null: all are
};

// Texts that stand one after the other without padding: text i is the rows [offsets[i], offsets[i + 1]).
struct PackedStates {
  const void* data;  // hidden (tokens, dim), contiguous
  HiddenType type;
  std::size_t texts;
  std::size_t dim;
  const std::int64_t* offsets;  // (texts + 1,), never falling
};

struct PoolOptions {
  Pooling pooling = Pooling::kMean;
  bool normalize = true;  // divide by max(length, 1e-12)
  int threads = 0;        // 0: all of the shared pool
  SimdLevel level = simd_level();
};

// Writes the vector of batch row i to out + rows[i] * dim. A row without any real token gives zeros.
// Returns the first batch row whose vector is not finite, or -1.
std::ptrdiff_t pool(const HiddenStates& hidden, const std::int64_t* rows, float* out, const PoolOptions& options);

// The same of packed texts, with the bits that each text alone gives.
std::ptrdiff_t pool_packed(const PackedStates& hidden, const std::int64_t* rows, float* out,
                           const PoolOptions& options);

// The same formula in plain loops over double, without lanes: what the tests hold every kernel against.
void pool_reference(const HiddenStates& hidden, const std::int64_t* rows, float* out, const PoolOptions& options);

// The same on a CUDA device: all pointers are device pointers, `rows` too; launched on `stream` (a cudaStream_t), no
// synchronisation. Not-finite rows are counted into *bad (device, int32, zeroed by the caller). Throws kDevice without
// CUDA.
void pool_cuda(const HiddenStates& hidden, const std::int64_t* rows, float* out, std::int32_t* bad,
               const PoolOptions& options, void* stream);

}  // namespace tttnn
