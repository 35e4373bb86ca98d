// Gradient norm, clipping and AdamW in one call over tensors that lie in blocks.
//
// Formulas and order of operations are those of torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW (Loshchilov &
// Hutter, arXiv:1711.05101, algorithm 2), in float32:
//   g <- g * min(1, clip_norm / (norm + 1e-6));  p <- p * (1 - lr * decay);  m <- m + (1 - beta1) * (g - m)
//   v <- v * beta2 + (1 - beta2) * g * g;  p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
// but sqrt(1 - beta2^t) divides as a multiplication by its inverse: one rounding more, a third fewer divisions.
// The norm is summed in float64 over blocks of fixed size in fixed order, and every other operation is elementwise
// IEEE arithmetic: the same bits for any number of threads and any processor.
#pragma once

#include <cstddef>
#include <vector>

#include "adamw_plan.h"
#include "build_info.h"

namespace tttnn {

class ThreadPool;

struct AdamwStep {
  double norm;              // of the whole gradient, before clipping
  std::size_t bytes_moved;  // read and written by this step
};

// Belongs to one thread at a time.
class Adamw {
 public:
  // `level` is for tests: every level gives the same bits.
  Adamw(std::vector<AdamwTensor> tensors, const AdamwOptions& options, SimdLevel level = simd_level());

  // As in AdamwPlan.
  void fresh_moments() noexcept { plan_.fresh_moments(); }

  // Trains on `inputs`, one per tensor, gradients with 4-byte (2-byte for bfloat16) alignment. Throws Error(kNonFinite)
  // before anything is written when the norm is not finite, and what AdamwPlan::prepare throws.
  AdamwStep step(const std::vector<AdamwInput>& inputs, double learning_rate, ThreadPool& pool, int max_threads);

 private:
  struct Piece {  // a run of elements of one tensor; what the norm's partial sums belong to
    std::size_t tensor;
    std::size_t begin;
    std::size_t size;
  };
  struct Task {  // a run of pieces
    std::size_t begin;
    std::size_t end;
  };

  AdamwPlan plan_;
  SimdLevel level_;
  std::vector<Piece> pieces_;
  std::vector<Task> tasks_;
  std::vector<double> partials_;  // one per piece
};

}  // namespace tttnn
