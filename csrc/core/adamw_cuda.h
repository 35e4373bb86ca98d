// The step of adamw.h over tensors on a CUDA device: the same formulas, order and bits.
//
// Allocates no device memory: weights, moments, gradients and scratch are the caller's. The device never waits for the
// host between norm and update; the host waits once, at the end, because the norm decides whether the step counts.
#pragma once

#include <cstddef>
#include <vector>

#include "adamw.h"
#include "adamw_plan.h"

namespace tttnn {

class AdamwCuda {
 public:
  AdamwCuda(std::vector<AdamwTensor> tensors, const AdamwOptions& options) : plan_(std::move(tensors), options) {}

  void fresh_moments() noexcept { plan_.fresh_moments(); }

  // Bytes of device memory, 256-byte aligned, that step() needs; nothing in it is kept from one step to the next.
  std::size_t scratch_bytes() const noexcept;

  // As Adamw::step, on `stream` (a cudaStream_t) of device `device`; waits until the stream has run it.
  // Throws Error(kDevice) when the device refuses or without CUDA.
  AdamwStep step(const std::vector<AdamwInput>& inputs, double learning_rate, void* scratch, int device, void* stream);

 private:
  AdamwPlan plan_;
};

}  // namespace tttnn
