// How often each tensor has been trained, and the table that a step's kernels read: for the processor (adamw.h) and the
// device (adamw_cuda.h) alike. Where weights are and where they go is the caller's knowledge, given with each step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "adamw_element.h"

namespace tttnn {

enum class WeightType { kFloat32, kBFloat16 };

// What lasts of one tensor. All arrays hold `size` elements in the same order and start on 64-byte boundaries; the
// caller owns them and keeps them while the Adamw lives.
struct AdamwTensor {
  std::size_t size;
  WeightType type;         // of the weights; gradients are bfloat16 where weights are or are rounded
  float* m;                // first moment
  float* v;                // second moment
  float* master;           // bfloat16 weights only: their float32 values, which the steps really train; else null
  std::uint16_t* rounded;  // float32 weights only: written by every step with weights rounded to bfloat16; or null
};

// One tensor in one step; arrays as above.
struct AdamwInput {
  const void* gradient;  // null: the tensor is left alone, as torch leaves it alone
  const void* source;    // its weights before the step; null: the master's, which an earlier step has written
  void* target;          // its weights after it; may equal `source`
};

struct AdamwOptions {
  double beta1;
  double beta2;
  double epsilon;
  double weight_decay;
  double clip_norm;  // infinity: never clip
};

// Keeps the number of steps of each tensor. Belongs to one thread at a time.
class AdamwPlan {
 public:
  AdamwPlan(std::vector<AdamwTensor> tensors, const AdamwOptions& options);

  // Moments are zero and steps counted from 0 again. Costs nothing: the next step does not read them.
  void fresh_moments() noexcept;

  // Writes the rows of one step; returns the bytes that it reads and writes. Throws Error(kInvalidArgument) on a wrong
  // count of inputs, on float32 weights without a source and on a trained tensor without a target. The step counts once
  // settle() has seen its norm.
  std::size_t prepare(const std::vector<AdamwInput>& inputs, double learning_rate);
  // Throws Error(kNonFinite), and nothing has changed, when the norm is not finite.
  void settle(double norm);

  const std::vector<AdamwRow>& rows() const noexcept { return rows_; }
  std::size_t pieces() const noexcept { return pieces_; }
  double clip_norm() const noexcept { return options_.clip_norm; }

 private:
  struct State {
    std::uint64_t steps = 0;
    bool fresh_moments = true;
  };

  std::vector<AdamwTensor> tensors_;
  AdamwOptions options_;
  std::vector<State> states_;   // per tensor, as the rest
  std::vector<AdamwRow> rows_;  // of the step prepared last
  std::size_t pieces_ = 0;
};

}  // namespace tttnn
