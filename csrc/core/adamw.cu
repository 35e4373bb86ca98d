// Gradient norm, clipping and AdamW on CUDA. Plain reference: adamw.cpp, whose bits these kernels give; the arithmetic
// is that of adamw_element.h.
//
// A piece is 16384 elements of one tensor. Norm: a warp per piece, thread l of it sums elements l, l + 32, ...; then
// one thread adds the pieces' sums in order. Update: a block per piece, neighboring threads on neighboring elements, so
// that every array is read and written once and coalesced.
#include "adamw_cuda.h"
#include "cuda_device.h"

namespace tttnn {

namespace {

constexpr unsigned kWarps = 4;           // of a block of the norm's kernel
constexpr unsigned kTotalThreads = 256;  // of the block that adds up
constexpr unsigned kTrainThreads = 256;  // of a block of the update's kernel
constexpr std::size_t kAlignment = 256;  // of the parts of the scratch memory

static_assert(kAdamwLanes == 32, "a lane of the norm is a thread of a warp");

// partials (pieces,)
__global__ void square_sums(const AdamwRow* rows, std::size_t count, std::size_t pieces, double* partials) {
  const std::size_t piece = static_cast<std::size_t>(blockIdx.x) * kWarps + threadIdx.x / kAdamwLanes;
  if (piece >= pieces) return;  // the whole warp
  const unsigned lane = threadIdx.x % kAdamwLanes;
  const AdamwRow& row = rows[adamw_row_of(rows, count, piece)];
  double sum = 0.0;
  if (row.gradient != nullptr) {
    const std::size_t begin = (piece - row.first_piece) * kAdamwPieceSize;
    const std::size_t end = begin + kAdamwPieceSize < row.size ? begin + kAdamwPieceSize : row.size;
    if (row.rounded != nullptr) {
      sum = adamw_lane_sum(static_cast<const std::uint16_t*>(row.gradient), begin, end, lane);
    } else {
      sum = adamw_lane_sum(static_cast<const float*>(row.gradient), begin, end, lane);
    }
  }
  for (unsigned width = kAdamwLanes / 2; width > 0; width /= 2) sum += __shfl_down_sync(0xffffffffu, sum, width);
  if (lane == 0) partials[piece] = sum;
}

// One block: all threads fetch, one adds, so that the order of the sum is that of the pieces.
__global__ void add_up(const double* partials, std::size_t pieces, double clip_norm, AdamwTotals* totals) {
  __shared__ double fetched[kTotalThreads];
  double sum = 0.0;
  for (std::size_t begin = 0; begin < pieces; begin += kTotalThreads) {
    const std::size_t n = pieces - begin < kTotalThreads ? pieces - begin : kTotalThreads;
    if (threadIdx.x < n) fetched[threadIdx.x] = partials[begin + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
      for (std::size_t i = 0; i < n; ++i) sum += fetched[i];
    __syncthreads();
  }
  if (threadIdx.x == 0) *totals = adamw_totals(sum, clip_norm);
}

__global__ void train(const AdamwRow* rows, std::size_t count, const AdamwTotals* totals) {
  if (!isfinite(totals->norm)) return;  // no weight changes; the host learns it from the norm
  const AdamwRow row = rows[adamw_row_of(rows, count, blockIdx.x)];
  if (row.gradient == nullptr) return;
  const float clip = totals->clip;
  const std::size_t begin = (blockIdx.x - row.first_piece) * kAdamwPieceSize;
  const std::size_t end = begin + kAdamwPieceSize < row.size ? begin + kAdamwPieceSize : row.size;
  // The types are the same for a whole block: no warp diverges.
  if (row.rounded == nullptr) {
    for (std::size_t i = begin + threadIdx.x; i < end; i += kTrainThreads) adamw_element<float, float>(row, clip, i);
  } else if (row.bfloat_source) {
    for (std::size_t i = begin + threadIdx.x; i < end; i += kTrainThreads)
      adamw_element<std::uint16_t, std::uint16_t>(row, clip, i);
  } else {
    for (std::size_t i = begin + threadIdx.x; i < end; i += kTrainThreads)
      adamw_element<float, std::uint16_t>(row, clip, i);
  }
}

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

// totals | rows | partials
std::size_t AdamwCuda::scratch_bytes() const noexcept {
  return aligned(sizeof(AdamwTotals)) + aligned(plan_.rows().size() * sizeof(AdamwRow)) +
         aligned(plan_.pieces() * sizeof(double));
}

AdamwStep AdamwCuda::step(const std::vector<AdamwInput>& inputs, double learning_rate, void* scratch, int device,
                          void* stream) {
  AdamwStep result{};
  result.bytes_moved = plan_.prepare(inputs, learning_rate);
  const std::size_t pieces = plan_.pieces();
  if (pieces == 0) return result;
  const std::vector<AdamwRow>& table = plan_.rows();
  const CudaDevice chosen(device);
  const auto on = static_cast<cudaStream_t>(stream);
  auto* const totals = static_cast<AdamwTotals*>(scratch);
  auto* const rows = reinterpret_cast<AdamwRow*>(static_cast<char*>(scratch) + aligned(sizeof(AdamwTotals)));
  auto* const partials =
      reinterpret_cast<double*>(reinterpret_cast<char*>(rows) + aligned(table.size() * sizeof(AdamwRow)));

  // From pageable memory, which the runtime stages: the table may change once the call has returned.
  cuda_check(cudaMemcpyAsync(rows, table.data(), table.size() * sizeof(AdamwRow), cudaMemcpyHostToDevice, on),
             "handing over the table of tensors");
  const auto norm_blocks = static_cast<unsigned>((pieces + kWarps - 1) / kWarps);
  square_sums<<<norm_blocks, kWarps * kAdamwLanes, 0, on>>>(rows, table.size(), pieces, partials);
  cuda_check(cudaGetLastError(), "launching the gradient's norm");
  add_up<<<1, kTotalThreads, 0, on>>>(partials, pieces, plan_.clip_norm(), totals);
  cuda_check(cudaGetLastError(), "launching the sum of the norm");
  train<<<static_cast<unsigned>(pieces), kTrainThreads, 0, on>>>(rows, table.size(), totals);
  cuda_check(cudaGetLastError(), "launching the update");
  cuda_check(cudaMemcpyAsync(&result.norm, &totals->norm, sizeof(double), cudaMemcpyDeviceToHost, on),
             "reading the norm");
  cuda_check(cudaStreamSynchronize(on), "the step");
  plan_.settle(result.norm);
  return result;
}

}  // namespace tttnn
