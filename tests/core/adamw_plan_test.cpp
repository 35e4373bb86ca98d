// The CUDA step, its kernels' loops run on the host: the bits of Adamw, for all kinds of steps and gradients.
#include <adamw_cuda.h>
#include <error.h>
#include <parallel.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"

namespace {

using namespace tttnn;

// Around warps (32), blocks (256), pieces (16384); empty tensors first, in between and last.
const std::vector<std::size_t> kSizes = {0, 1, 31, 33, 257, 0, 16384, 16385, 40001, 0};
const AdamwOptions kOptions{0.9, 0.999, 1e-8, 0.1, 1.0};

std::uint64_t state = 1;
float noise() {  // in [-1, 1)
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<double>(state >> 11) / 4503599627370496.0 - 1.0);
}

struct Weights {
  WeightType type;
  bool in_place, has_copies;
  std::vector<std::vector<float>> source, weights, other, master, copies, m, v;  // of bfloat16, two to a float
  std::vector<std::vector<std::vector<float>>*> now;                             // where steps have written the weights
  std::vector<bool> fresh;  // whether the next step reads where they were at first

  Weights(WeightType kind, bool same, bool rounded)
      : type(kind), in_place(same), has_copies(rounded), now(kSizes.size(), nullptr), fresh(kSizes.size(), true) {
    for (std::size_t size : kSizes) {
      source.push_back(values(size, 0.1f, type == WeightType::kBFloat16));
      weights.push_back(source.back());
      // Not zero: what is fresh must not be read.
      for (auto* array : {&other, &master, &copies, &m, &v})
        array->emplace_back(size + 1, std::numeric_limits<float>::quiet_NaN());
    }
  }

  static std::vector<float> values(std::size_t size, float scale, bool bfloat) {
    std::vector<float> result(size + 1, 0.0f);
    for (std::size_t i = 0; i < size; ++i) {
      const float value = scale * noise();
      if (bfloat) {
        const std::uint16_t bits = adamw_narrow(value);
        std::memcpy(reinterpret_cast<char*>(result.data()) + 2 * i, &bits, 2);
      } else {
        result[i] = value;
      }
    }
    return result;
  }

  std::vector<std::vector<float>> gradients() const {
    std::vector<std::vector<float>> result;
    for (std::size_t size : kSizes) result.push_back(values(size, 0.02f, has_copies || type == WeightType::kBFloat16));
    return result;
  }

  std::vector<AdamwTensor> tensors() {
    std::vector<AdamwTensor> list;
    for (std::size_t t = 0; t < kSizes.size(); ++t)
      list.push_back({kSizes[t], type, m[t].data(), v[t].data(),
                      type == WeightType::kFloat32 ? nullptr : master[t].data(),
                      has_copies ? reinterpret_cast<std::uint16_t*>(copies[t].data()) : nullptr});
    return list;
  }

  // A step that writes `to`; bfloat16 weights that are not fresh go on in their masters.
  std::vector<AdamwInput> inputs(const std::vector<const void*>& gradients, std::vector<std::vector<float>>& to) {
    std::vector<AdamwInput> list;
    for (std::size_t t = 0; t < kSizes.size(); ++t) {
      const void* from = fresh[t] ? (in_place ? weights[t].data() : source[t].data()) : (*now[t])[t].data();
      if (!fresh[t] && type == WeightType::kBFloat16) from = nullptr;
      list.push_back({gradients[t], from, to[t].data()});
      if (gradients[t] == nullptr) continue;
      now[t] = &to;
      fresh[t] = false;
    }
    return list;
  }

  bool operator==(const Weights& their) const {
    const auto same = [](const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
      for (std::size_t t = 0; t < a.size(); ++t)
        if (std::memcmp(a[t].data(), b[t].data(), a[t].size() * sizeof(float)) != 0) return false;
      return true;
    };
    return same(weights, their.weights) && same(other, their.other) && same(master, their.master) &&
           same(copies, their.copies) && same(m, their.m) && same(v, their.v);
  }
};

// adamw.cu in loops: a block after the other, a thread after the other.
double run_kernels(AdamwPlan& plan) {
  const std::vector<AdamwRow>& rows = plan.rows();
  double sum = 0.0;
  for (std::size_t piece = 0; piece < plan.pieces(); ++piece) {
    const AdamwRow& row = rows[adamw_row_of(rows.data(), rows.size(), piece)];
    const std::size_t begin = (piece - row.first_piece) * kAdamwPieceSize;
    CHECK(begin < row.size);
    if (row.gradient == nullptr) continue;
    const std::size_t end = begin + kAdamwPieceSize < row.size ? begin + kAdamwPieceSize : row.size;
    double lanes[kAdamwLanes];
    for (std::size_t lane = 0; lane < kAdamwLanes; ++lane)
      lanes[lane] = row.rounded != nullptr
                        ? adamw_lane_sum(static_cast<const std::uint16_t*>(row.gradient), begin, end, lane)
                        : adamw_lane_sum(static_cast<const float*>(row.gradient), begin, end, lane);
    for (std::size_t width = kAdamwLanes / 2; width > 0; width /= 2)
      for (std::size_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    sum += lanes[0];
  }
  const AdamwTotals totals = adamw_totals(sum, plan.clip_norm());
  if (!std::isfinite(totals.norm)) return totals.norm;
  for (std::size_t piece = 0; piece < plan.pieces(); ++piece) {
    const AdamwRow& row = rows[adamw_row_of(rows.data(), rows.size(), piece)];
    if (row.gradient == nullptr) continue;
    const std::size_t begin = (piece - row.first_piece) * kAdamwPieceSize;
    const std::size_t end = begin + kAdamwPieceSize < row.size ? begin + kAdamwPieceSize : row.size;
    for (std::size_t i = begin; i < end; ++i) {
      if (row.rounded == nullptr) {
        adamw_element<float, float>(row, totals.clip, i);
      } else if (row.bfloat_source) {
        adamw_element<std::uint16_t, std::uint16_t>(row, totals.clip, i);
      } else {
        adamw_element<float, std::uint16_t>(row, totals.clip, i);
      }
    }
  }
  return totals.norm;
}

void same_bits_as_the_processor(WeightType type, bool in_place, bool has_copies, double clip_norm) {
  AdamwOptions options = kOptions;
  options.clip_norm = clip_norm;
  Weights ours(type, in_place, has_copies);
  Weights theirs = ours;
  AdamwPlan plan(ours.tensors(), options);
  Adamw adamw(theirs.tensors(), options);
  ThreadPool pool(2);
  for (int step = 0; step < 12; ++step) {
    const std::vector<std::vector<float>> values = ours.gradients();
    std::vector<const void*> gradients;
    for (const auto& value : values) gradients.push_back(value.data());
    if (step % 3 == 1) gradients[6] = nullptr;
    if (step == 3 || step == 5) {  // moments alone, then both
      plan.fresh_moments();
      adamw.fresh_moments();
    }
    if (step == 5 || step == 7)  // both, then weights alone
      for (Weights* of : {&ours, &theirs}) of->fresh.assign(kSizes.size(), true);
    const bool across = step == 2 || step == 3 || step == 9 || step == 11;
    const AdamwStep expected =
        adamw.step(theirs.inputs(gradients, across ? theirs.other : theirs.weights), 1e-3 / (step + 1), pool, 0);
    CHECK(plan.prepare(ours.inputs(gradients, across ? ours.other : ours.weights), 1e-3 / (step + 1)) ==
          expected.bytes_moved);
    const double norm = run_kernels(plan);
    plan.settle(norm);
    CHECK(norm == expected.norm);
    CHECK(ours == theirs);
  }
}

void bad_gradients_do_not_count() {
  Weights ours(WeightType::kFloat32, true, false);
  Weights never = ours;
  AdamwPlan plan(ours.tensors(), kOptions);
  std::vector<std::vector<float>> values = ours.gradients();
  std::vector<const void*> gradients;
  for (const auto& value : values) gradients.push_back(value.data());
  const float good = values[8][40000];
  values[8][40000] = std::numeric_limits<float>::quiet_NaN();
  plan.prepare(ours.inputs(gradients, ours.weights), 1e-3);
  const double norm = run_kernels(plan);
  bool thrown = false;
  try {
    plan.settle(norm);
  } catch (const Error& error) {
    thrown = error.code() == ErrorCode::kNonFinite;
  }
  CHECK(thrown);
  CHECK(ours == never);
  values[8][40000] = good;

  // The next step is the first.
  Adamw adamw(never.tensors(), kOptions);
  ThreadPool pool(1);
  adamw.step(never.inputs(gradients, never.weights), 1e-3, pool, 0);
  plan.prepare(ours.inputs(gradients, ours.weights), 1e-3);
  plan.settle(run_kernels(plan));
  CHECK(ours == never);

  thrown = false;
  try {
    plan.prepare({}, 1e-3);
  } catch (const Error& error) {
    thrown = error.code() == ErrorCode::kInvalidArgument;
  }
  CHECK(thrown);
}

}  // namespace

int main() {
  for (WeightType type : {WeightType::kFloat32, WeightType::kBFloat16})
    for (bool in_place : {false, true})
      for (bool has_copies : {false, true})
        for (double clip : {1.0, std::numeric_limits<double>::infinity()}) {
          if (has_copies && type == WeightType::kBFloat16) continue;
          same_bits_as_the_processor(type, in_place, has_copies, clip);
        }
  bad_gradients_do_not_count();
  return 0;
}
