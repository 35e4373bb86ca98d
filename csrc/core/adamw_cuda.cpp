#include "adamw_cuda.h"

#include <cmath>
#include <string>

#include "error.h"

namespace tttnn {

AdamwPlan::AdamwPlan(std::vector<AdamwTensor> tensors, const AdamwOptions& options)
    : options_(options), steps_(tensors.size(), 0) {
  rows_.reserve(tensors.size());
  for (const AdamwTensor& tensor : tensors) {
    AdamwRow row{};
    row.source = tensor.source;
    row.weights = tensor.weights;
    row.master = tensor.master;
    row.m = tensor.m;
    row.v = tensor.v;
    row.size = tensor.size;
    row.first_piece = pieces_;
    row.scalars.one_beta1 = static_cast<float>(1.0 - options.beta1);
    row.scalars.beta2 = static_cast<float>(options.beta2);
    row.scalars.one_beta2 = static_cast<float>(1.0 - options.beta2);
    row.scalars.epsilon = static_cast<float>(options.epsilon);
    row.is_bfloat16 = tensor.type == WeightType::kBFloat16;
    row.fresh_weights = 1;
    row.fresh_moments = 1;
    rows_.push_back(row);
    pieces_ += (tensor.size + kAdamwPieceSize - 1) / kAdamwPieceSize;
  }
}

void AdamwPlan::fresh_weights() noexcept {
  for (AdamwRow& row : rows_) row.fresh_weights = 1;
}

void AdamwPlan::fresh_moments() noexcept {
  for (std::size_t t = 0; t < rows_.size(); ++t) {
    rows_[t].fresh_moments = 1;
    steps_[t] = 0;
  }
}

std::size_t AdamwPlan::prepare(const std::vector<const void*>& gradients, double learning_rate) {
  if (gradients.size() != rows_.size())
    throw Error(ErrorCode::kInvalidArgument, "gradients must be one per tensor (" + std::to_string(rows_.size()) +
                                                 "), got " + std::to_string(gradients.size()));
  std::size_t bytes_moved = 0;
  for (std::size_t t = 0; t < rows_.size(); ++t) {
    AdamwRow& row = rows_[t];
    row.gradient = gradients[t];
    row.scalars.decay = static_cast<float>(1.0 - learning_rate * options_.weight_decay);
    if (row.gradient == nullptr) continue;
    const double steps = static_cast<double>(steps_[t] + 1);
    row.scalars.over_root_bias2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(options_.beta2, steps)));
    row.scalars.minus_step = static_cast<float>(-learning_rate / (1.0 - std::pow(options_.beta1, steps)));

    const std::size_t weight = row.is_bfloat16 ? 2 : 4;
    const std::size_t trained = sizeof(float);  // the float32 weights or masters
    std::size_t per_element = 2 * weight;       // gradient: norm and update
    per_element += (row.fresh_weights ? weight : trained) + trained;
    if (row.is_bfloat16) per_element += weight;
    per_element += (row.fresh_moments ? 2 : 4) * sizeof(float);
    bytes_moved += per_element * row.size;
  }
  return bytes_moved;
}

void AdamwPlan::settle(double norm) {
  if (!std::isfinite(norm))
    throw Error(ErrorCode::kNonFinite,
                "gradient norm must be finite, got " + std::to_string(norm) + ". No weight was changed by this step.");
  for (std::size_t t = 0; t < rows_.size(); ++t) {
    if (rows_[t].gradient == nullptr) continue;
    rows_[t].fresh_weights = 0;
    rows_[t].fresh_moments = 0;
    ++steps_[t];
  }
}

#if !defined(TTTNN_HAS_CUDA)
std::size_t AdamwCuda::scratch_bytes() const noexcept { return 0; }

AdamwStep AdamwCuda::step(const std::vector<const void*>&, double, void*, int, void*) {
  throw Error(ErrorCode::kDevice, "device must be cpu in this build, got cuda. Install a build with CUDA.");
}
#endif

}  // namespace tttnn
