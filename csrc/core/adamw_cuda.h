// The step of adamw.h over tensors on a CUDA device: the same formulas, order and bits.
//
// Allocates no device memory: weights, moments, gradients and scratch are the caller's. The device never waits for the
// host between norm and update; the host waits once, at the end, because the norm decides whether the step counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "adamw.h"
#include "adamw_element.h"

namespace tttnn {

// The host's part: what has been trained how often, and the table that the kernels read. Belongs to one thread at a
// time.
class AdamwPlan {
 public:
  AdamwPlan(std::vector<AdamwTensor> tensors, const AdamwOptions& options);

  // As in Adamw.
  void fresh_weights() noexcept;
  void fresh_moments() noexcept;
  void keep();
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

class AdamwCuda {
 public:
  AdamwCuda(std::vector<AdamwTensor> tensors, const AdamwOptions& options) : plan_(std::move(tensors), options) {}

  void fresh_weights() noexcept { plan_.fresh_weights(); }
  void fresh_moments() noexcept { plan_.fresh_moments(); }
  void keep() { plan_.keep(); }
  std::vector<int> places() const { return plan_.places(); }

  // Bytes of device memory, 256-byte aligned, that step() needs; nothing in it is kept from one step to the next.
  std::size_t scratch_bytes() const noexcept;

  // As Adamw::step, on `stream` (a cudaStream_t) of device `device`; waits until the stream has run it.
  // Throws Error(kDevice) when the device refuses or without CUDA.
  AdamwStep step(const std::vector<const void*>& gradients, double learning_rate, void* scratch, int device,
                 void* stream);

 private:
  AdamwPlan plan_;
};

}  // namespace tttnn
