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
#include <cstdint>
#include <string>
#include <vector>

#include "build_info.h"

namespace tttnn {

class ThreadPool;

enum class WeightType { kFloat32, kBFloat16 };

// One tensor. All arrays hold `size` elements in the same order and start on 64-byte boundaries; the caller owns them
// and keeps them while the Adamw lives. `weights` may equal `source`: then every step works in place.
struct AdamwTensor {
  const void* source;     // pristine weights, read by the first step after fresh_weights()
  void* weights;          // written by every step, read by the later ones
  void* other;            // a second place for weights, so that keep() can leave the first as it is; or null
  float* master;          // bfloat16 weights only: their float32 values, which the steps really train; else null
  std::uint16_t* shadow;  // float32 weights only: written by every step with weights rounded to bfloat16; or null
  float* m;               // first moment
  float* v;               // second moment
  std::size_t size;
  WeightType type;  // of source and weights; gradients are bfloat16 where weights are or have a shadow
};

struct AdamwOptions {
  double beta1;
  double beta2;
  double epsilon;
  double weight_decay;
  double clip_norm;  // infinity: never clip
};

struct AdamwStep {
  double norm;              // of the whole gradient, before clipping
  std::size_t bytes_moved;  // read and written by this step
};

// Belongs to one thread at a time. Keeps the number of steps of each tensor, so a tensor without a gradient is left
// alone as torch leaves it alone.
class Adamw {
 public:
  // `level` is for tests: every level gives the same bits.
  Adamw(std::vector<AdamwTensor> tensors, const AdamwOptions& options, SimdLevel level = simd_level());

  // The next step of each tensor starts from `source`, keeping moments: new query, carried optimizer state. Forgets
  // what was kept.
  void fresh_weights() noexcept;
  // Moments are zero and steps counted from 0 again. Costs nothing: the next step does not read them.
  void fresh_moments() noexcept;

  // Leaves the weights of now where they are: the next step of each tensor reads them and writes the other place. What
  // was kept before is given up. Copies nothing. Throws Error(kInvalidArgument) where a tensor has no other place.
  void keep();

  // Where the weights of each tensor are: 0 source, 1 weights, 2 other.
  std::vector<int> places() const;

  // Trains on `gradients`, one address per tensor, null for none, 4-byte (2-byte for bfloat16) alignment.
  // Throws Error(kNonFinite) before anything is written when the norm is not finite; kInvalidArgument on a wrong count.
  AdamwStep step(const std::vector<const void*>& gradients, double learning_rate, ThreadPool& pool, int max_threads);

 private:
  struct State {
    std::uint64_t steps = 0;
    bool fresh_moments = true;
    int place = 0;  // as in places()
    int kept = 0;   // the place that the next step may not write; 0: none

    int next_place() const noexcept { return place == 0 || place == kept ? (kept == 1 ? 2 : 1) : place; }
  };
  struct Piece {  // a run of elements of one tensor; what the norm's partial sums belong to
    std::size_t tensor;
    std::size_t begin;
    std::size_t size;
  };
  struct Task {  // a run of pieces
    std::size_t begin;
    std::size_t end;
  };

  std::vector<AdamwTensor> tensors_;
  AdamwOptions options_;
  SimdLevel level_;
  std::vector<State> states_;
  std::vector<Piece> pieces_;
  std::vector<Task> tasks_;
  std::vector<double> partials_;  // one per piece
};

}  // namespace tttnn
