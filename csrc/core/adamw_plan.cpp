#include "adamw_plan.h"

#include <cmath>
#include <string>

#include "error.h"

namespace tttnn {

AdamwPlan::AdamwPlan(std::vector<AdamwTensor> tensors, const AdamwOptions& options)
    : tensors_(std::move(tensors)), options_(options), states_(tensors_.size()) {
  rows_.reserve(tensors_.size());
  for (const AdamwTensor& tensor : tensors_) {
    AdamwRow row{};
    row.m = tensor.m;
    row.v = tensor.v;
    row.size = tensor.size;
    row.first_piece = pieces_;
    row.scalars.one_beta1 = static_cast<float>(1.0 - options.beta1);
    row.scalars.beta2 = static_cast<float>(options.beta2);
    row.scalars.one_beta2 = static_cast<float>(1.0 - options.beta2);
    row.scalars.epsilon = static_cast<float>(options.epsilon);
    rows_.push_back(row);
    pieces_ += (tensor.size + kAdamwPieceSize - 1) / kAdamwPieceSize;
  }
}

void AdamwPlan::fresh_moments() noexcept {
  for (State& state : states_) {
    state.fresh_moments = true;
    state.steps = 0;
  }
}

std::size_t AdamwPlan::prepare(const std::vector<AdamwInput>& inputs, double learning_rate) {
  if (inputs.size() != rows_.size())
    throw Error(ErrorCode::kInvalidArgument, "gradients must be one per tensor (" + std::to_string(rows_.size()) +
                                                 "), got " + std::to_string(inputs.size()));
  std::size_t bytes_moved = 0;
  for (std::size_t t = 0; t < rows_.size(); ++t) {
    const AdamwTensor& tensor = tensors_[t];
    const AdamwInput& input = inputs[t];
    const State& state = states_[t];
    AdamwRow& row = rows_[t];
    const bool bfloat = tensor.type == WeightType::kBFloat16;
    if (input.gradient != nullptr && tensor.size > 0 &&
        (input.target == nullptr || (input.source == nullptr && !bfloat)))
      throw Error(ErrorCode::kInvalidArgument,
                  "a trained tensor must have a source and a target, got 0 for tensor " + std::to_string(t));
    // Steps after the first go on in the masters, wherever the rounded weights are written.
    row.p = bfloat ? tensor.master : static_cast<float*>(input.target);
    row.source = input.source != nullptr ? input.source : tensor.master;
    row.rounded = bfloat ? static_cast<std::uint16_t*>(input.target) : tensor.rounded;
    row.bfloat_source = bfloat && input.source != nullptr;
    row.fresh_moments = state.fresh_moments;
    row.gradient = input.gradient;
    row.scalars.decay = static_cast<float>(1.0 - learning_rate * options_.weight_decay);
    if (row.gradient == nullptr) continue;
    const double steps = static_cast<double>(state.steps + 1);
    row.scalars.over_root_bias2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(options_.beta2, steps)));
    row.scalars.minus_step = static_cast<float>(-learning_rate / (1.0 - std::pow(options_.beta1, steps)));

    std::size_t per_element = 2 * (row.rounded != nullptr ? 2 : 4);  // gradient: norm and update
    per_element += (row.bfloat_source ? 2 : 4) + 4 + (row.rounded != nullptr ? 2 : 0);
    per_element += state.fresh_moments ? 8 : 16;
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
    states_[t].fresh_moments = false;
    ++states_[t].steps;
  }
}

}  // namespace tttnn
