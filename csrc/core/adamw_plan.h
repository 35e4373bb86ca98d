// What of each tensor has been trained how often and where its weights are, and the table that a step's kernels read:
// for the processor (adamw.h) and the device (adamw_cuda.h) alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "adamw_element.h"

namespace tttnn {

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

// Keeps the number of steps of each tensor, so a tensor without a gradient is left alone as torch leaves it alone.
// Belongs to one thread at a time.
class AdamwPlan {
 public:
  AdamwPlan(std::vector<AdamwTensor> tensors, const AdamwOptions& options);

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

  // Writes the rows of one step; returns the bytes that it reads and writes. Throws Error(kInvalidArgument) on a wrong
  // count of gradients. The step counts once settle() has seen its norm.
  std::size_t prepare(const std::vector<const void*>& gradients, double learning_rate);
  // Throws Error(kNonFinite), and nothing has changed, when the norm is not finite.
  void settle(double norm);

  const std::vector<AdamwRow>& rows() const noexcept { return rows_; }
  std::size_t pieces() const noexcept { return pieces_; }
  double clip_norm() const noexcept { return options_.clip_norm; }

 private:
  struct State {
    std::uint64_t steps = 0;
    bool fresh_moments = true;
    int place = 0;  // as in places()
    int kept = 0;   // the place that the next step may not write; 0: none

    int next_place() const noexcept { return place == 0 || place == kept ? (kept == 1 ? 2 : 1) : place; }
  };

  std::vector<AdamwTensor> tensors_;
  AdamwOptions options_;
  std::vector<State> states_;   // per tensor, as the rest
  std::vector<AdamwRow> rows_;  // of the step prepared last
  std::size_t pieces_ = 0;
};

}  // namespace tttnn
