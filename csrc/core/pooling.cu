// Masked mean (or first-token) pooling fused with L2 normalisation on CUDA. Plain reference: pool_reference in
// pooling.cpp.
//
// One block per batch row; a thread owns the dimensions d = threadIdx.x + i * blockDim.x, so reads along dim are
// coalesced and no sum over tokens crosses threads. hidden (batch, tokens, dim), mask (batch, tokens), out (rows, dim).
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <string>

#include "error.h"
#include "pooling.h"

namespace tttnn {

namespace {

constexpr int kThreads = 128;
constexpr float kSmallestLength = 1e-12f;

__device__ float as_float(float value) { return value; }
__device__ float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// The sum over the block, in every thread. `partial` has one float per warp.
__device__ float block_sum(float value, float* partial) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += partial[warp];
  return total;
}

template <typename T>
__global__ void pool_kernel(const T* hidden, const unsigned char* mask, const long long* rows, float* out, int* bad,
                            int tokens, int dim, bool cls, bool normalize) {
  __shared__ float partial[kThreads / 32];
  const long long b = blockIdx.x;
  const T* row = hidden + b * tokens * dim;
  const unsigned char* row_mask = mask == nullptr ? nullptr : mask + b * tokens;
  float* target = out + rows[b] * dim;

  int count = 0;
  int first = tokens;
  for (int t = 0; t < tokens; ++t) {
    if (row_mask != nullptr && row_mask[t] == 0) continue;
    if (count == 0) first = t;
    ++count;
  }
  const float divisor = cls ? 1.0f : fmaxf(static_cast<float>(count), 1.0f);

  float squares = 0.0f;
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    float total = 0.0f;
    if (cls) {
      if (count > 0) total = as_float(row[static_cast<long long>(first) * dim + d]);
    } else {
      for (int t = 0; t < tokens; ++t)
        if (row_mask == nullptr || row_mask[t] != 0) total += as_float(row[static_cast<long long>(t) * dim + d]);
    }
    total /= divisor;
    target[d] = total;
    squares += total * total;
  }
  const float length = sqrtf(block_sum(squares, partial));
  if (!isfinite(length) && threadIdx.x == 0) atomicAdd(bad, 1);
  if (!normalize) return;
  const float scale = fmaxf(length, kSmallestLength);
  for (int d = threadIdx.x; d < dim; d += kThreads) target[d] /= scale;
}

}  // namespace

void pool_cuda(const HiddenStates& hidden, const std::int64_t* rows, float* out, std::int32_t* bad,
               const PoolOptions& options, void* stream) {
  if (hidden.batch == 0) return;
  const dim3 grid(static_cast<unsigned>(hidden.batch));
  const auto on = static_cast<cudaStream_t>(stream);
  const auto* ids = reinterpret_cast<const long long*>(rows);
  const bool cls = options.pooling == Pooling::kCls;
  const int tokens = static_cast<int>(hidden.tokens);
  const int dim = static_cast<int>(hidden.dim);
  if (hidden.type == HiddenType::kFloat32) {
    pool_kernel<<<grid, kThreads, 0, on>>>(static_cast<const float*>(hidden.data), hidden.mask, ids, out, bad, tokens,
                                           dim, cls, options.normalize);
  } else {
    pool_kernel<<<grid, kThreads, 0, on>>>(static_cast<const __nv_bfloat16*>(hidden.data), hidden.mask, ids, out, bad,
                                           tokens, dim, cls, options.normalize);
  }
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess)
    throw Error(ErrorCode::kDevice, std::string("pooling kernel failed to launch: ") + cudaGetErrorString(status));
}

}  // namespace tttnn
