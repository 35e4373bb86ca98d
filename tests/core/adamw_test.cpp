// The step against a plain float64 reference; the same bits for every number of threads and every processor level.
#include <adamw.h>
#include <arena.h>
#include <error.h>
#include <parallel.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "check.h"

namespace {

using namespace tttnn;

// Around vector lanes (16), norm lanes (32), chunks (1024), pieces (16384) and tasks (65536).
const std::vector<std::size_t> kSizes = {1, 15, 16, 33, 1023, 1025, 16384, 16385, 70001};
const AdamwOptions kOptions{0.9, 0.999, 1e-8, 0.1, 1.0};

float noise(std::size_t i) { return static_cast<float>((i * 2654435761u >> 7) % 2001) / 1000.0f - 1.0f; }

std::uint16_t narrow(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float widen(std::uint16_t value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

struct Model {
  Block pristine{1 << 20}, working{1 << 20}, other{1 << 20}, master{1 << 20}, copies{1 << 20}, m{1 << 20}, v{1 << 20},
      gradient{1 << 20};
  std::vector<AdamwTensor> tensors;
  std::vector<const void*> gradients;
  std::vector<std::size_t> starts;  // of each tensor, in bytes
  WeightType weight_type, gradient_type;

  Model(WeightType type, bool rounded) : weight_type(type), gradient_type(rounded ? WeightType::kBFloat16 : type) {
    const std::size_t gradient_width = gradient_type == WeightType::kFloat32 ? 4 : 2;
    const std::size_t width = type == WeightType::kFloat32 ? 4 : 2;
    std::size_t offset = 0;  // elements
    for (std::size_t size : kSizes) {
      for (std::size_t i = offset; i < offset + size; ++i) {
        put(pristine, i, 0.1f * noise(i), type);
        put(working, i, 0.1f * noise(i), type);
        put(gradient, i, 0.01f * noise(i + 12345), gradient_type);
      }
      tensors.push_back({size, type, floats(m) + offset, floats(v) + offset,
                         type == WeightType::kFloat32 ? nullptr : floats(master) + offset,
                         rounded ? reinterpret_cast<std::uint16_t*>(copies.data()) + offset : nullptr});
      starts.push_back(offset * width);
      gradients.push_back(gradient.data() + offset * gradient_width);
      offset = (offset + size + 31) / 32 * 32;
    }
  }

  // Inputs of a step that reads weights from one block and writes them to another. Later steps on bfloat16 weights go
  // on in the masters: `later` leaves their source out.
  std::vector<AdamwInput> inputs(const Block& from, Block& to, bool later) const {
    std::vector<AdamwInput> list;
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const bool in_master = later && weight_type == WeightType::kBFloat16;
      list.push_back({gradients[t], in_master ? nullptr : from.data() + starts[t], to.data() + starts[t]});
    }
    return list;
  }

  const void* weights(std::size_t tensor) const { return working.data() + starts[tensor]; }

  static float* floats(Block& block) { return reinterpret_cast<float*>(block.data()); }
  static void put(Block& block, std::size_t i, float value, WeightType type) {
    if (type == WeightType::kFloat32) {
      floats(block)[i] = value;
    } else {
      reinterpret_cast<std::uint16_t*>(block.data())[i] = narrow(value);
    }
  }
  static double get(const void* data, std::size_t i, WeightType type) {
    if (type == WeightType::kFloat32) return static_cast<const float*>(data)[i];
    return widen(static_cast<const std::uint16_t*>(data)[i]);
  }
};

std::string bytes_of(const Block& block) {
  return std::string(reinterpret_cast<const char*>(block.data()), block.size());
}

void against_float64(WeightType type, bool in_place, bool rounded) {
  Model model(type, rounded);
  ThreadPool pool(2);
  Adamw adamw(model.tensors, kOptions);
  for (int query = 0; query < 2; ++query) {
    if (query > 0) {  // as restore() does
      std::memcpy(model.working.data(), model.pristine.data(), model.working.size());
      adamw.fresh_moments();
    }
    double norm = 0;
    for (int step = 1; step <= 3; ++step) {
      const Block& from = step == 1 && !in_place ? model.pristine : model.working;
      const AdamwStep result = adamw.step(model.inputs(from, model.working, step > 1), 1e-3, pool, 0);
      norm = result.norm;
      CHECK(result.bytes_moved > 0);
    }
    double sum = 0;
    for (std::size_t t = 0; t < kSizes.size(); ++t)
      for (std::size_t i = 0; i < kSizes[t]; ++i)
        sum += std::pow(Model::get(model.gradients[t], i, model.gradient_type), 2);
    CHECK(std::abs(norm / std::sqrt(sum) - 1) < 1e-12);
    const double clip = std::min(1.0, 1.0 / (std::sqrt(sum) + 1e-6));
    double error = 0;
    double update = 0;
    std::size_t offset = 0;
    for (std::size_t t = 0; t < kSizes.size(); ++t) {
      for (std::size_t i = 0; i < kSizes[t]; ++i) {
        const double start = Model::get(model.pristine.data(), offset + i, type);
        const double g = clip * Model::get(model.gradients[t], i, model.gradient_type);
        double p = start;
        double m = 0;
        double v = 0;
        for (int step = 1; step <= 3; ++step) {
          p *= 1 - 1e-3 * 0.1;
          m += 0.1 * (g - m);
          v = 0.999 * v + 0.001 * g * g;
          p -= 1e-3 / (1 - std::pow(0.9, step)) * m / (std::sqrt(v) / std::sqrt(1 - std::pow(0.999, step)) + 1e-8);
        }
        const AdamwTensor& tensor = model.tensors[t];
        const void* weights = model.weights(t);
        const double trained = tensor.master != nullptr ? tensor.master[i] : Model::get(weights, i, type);
        error += (trained - p) * (trained - p);
        update += (p - start) * (p - start);
        if (rounded) CHECK(tensor.rounded[i] == narrow(static_cast<const float*>(weights)[i]));
        if (tensor.master != nullptr) CHECK(Model::get(weights, i, type) == widen(narrow(tensor.master[i])));
      }
      offset = (offset + kSizes[t] + 31) / 32 * 32;
    }
    // Float32 rounding of weights near 0.1 (3e-9 a step) beside updates of 3e-3.
    CHECK(std::sqrt(error) < 1e-5 * std::sqrt(update));
  }
}

void same_bits(WeightType type, bool in_place, bool rounded) {
  std::string first;
  std::vector<SimdLevel> levels = {SimdLevel::kBaseline};
  if (simd_level() >= SimdLevel::kV3) levels.push_back(SimdLevel::kV3);
  if (simd_level() >= SimdLevel::kV4) levels.push_back(SimdLevel::kV4);
  for (SimdLevel level : levels)
    for (int threads : {1, 2, 3}) {
      Model model(type, rounded);
      ThreadPool pool(threads);
      Adamw adamw(model.tensors, kOptions, level);
      for (int step = 0; step < 5; ++step) {
        if (step == 3) adamw.fresh_moments();
        const Block& from = step == 0 && !in_place ? model.pristine : model.working;
        std::vector<AdamwInput> inputs = model.inputs(from, model.working, step > 0);
        if (step % 2 == 1) inputs[4].gradient = nullptr;
        adamw.step(inputs, 1e-3, pool, 0);
      }
      // Carried moments, fresh weights.
      if (!in_place) adamw.step(model.inputs(model.pristine, model.working, false), 1e-3, pool, 0);
      const std::string all = bytes_of(model.working) + bytes_of(model.m) + bytes_of(model.v) + bytes_of(model.master) +
                              bytes_of(model.copies);
      if (first.empty()) first = all;
      CHECK(all == first);
    }
}

// Steps that read one place and write another give what steps in place give, and leave what they read as it is.
void across(WeightType type, bool rounded) {
  Model plain(type, rounded);
  Model model(type, rounded);
  ThreadPool pool(2);
  Adamw reference(plain.tensors, kOptions);
  Adamw adamw(model.tensors, kOptions);
  const std::vector<std::pair<Block*, Block*>> ways = {{&model.working, &model.other},
                                                       {&model.other, &model.working},
                                                       {&model.working, &model.working},
                                                       {&model.working, &model.other}};
  bool later = false;
  for (const auto& [from, to] : ways) {
    const std::string before = bytes_of(*from);
    reference.step(plain.inputs(plain.working, plain.working, later), 1e-3, pool, 0);
    adamw.step(model.inputs(*from, *to, later), 1e-3, pool, 0);
    later = true;
    if (from != to) CHECK(bytes_of(*from) == before);
    for (std::size_t t = 0; t < kSizes.size(); ++t) {
      const std::size_t bytes = kSizes[t] * (type == WeightType::kFloat32 ? 4 : 2);
      CHECK(std::memcmp(to->data() + model.starts[t], plain.weights(t), bytes) == 0);
    }
    CHECK(bytes_of(plain.m) + bytes_of(plain.v) + bytes_of(plain.master) + bytes_of(plain.copies) ==
          bytes_of(model.m) + bytes_of(model.v) + bytes_of(model.master) + bytes_of(model.copies));
  }
}

void bad_gradients_change_nothing() {
  Model model(WeightType::kFloat32, false);
  ThreadPool pool(2);
  Adamw adamw(model.tensors, kOptions);
  const std::string before = bytes_of(model.working);
  float* gradient = Model::floats(model.gradient);  // 33: inside the second tensor
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const float good = gradient[33];
    gradient[33] = bad;
    bool thrown = false;
    try {
      adamw.step(model.inputs(model.working, model.working, false), 1e-3, pool, 0);
    } catch (const Error& error) {
      thrown = error.code() == ErrorCode::kNonFinite;
    }
    gradient[33] = good;
    CHECK(thrown);
    CHECK(bytes_of(model.working) == before);
  }
  std::vector<AdamwInput> nowhere = model.inputs(model.working, model.working, false);
  nowhere[3].target = nullptr;
  std::vector<AdamwInput> of_nothing = model.inputs(model.working, model.working, false);
  of_nothing[3].source = nullptr;  // float32 weights have no master to go on in
  for (const std::vector<AdamwInput>& inputs : {std::vector<AdamwInput>{}, nowhere, of_nothing}) {
    bool thrown = false;
    try {
      adamw.step(inputs, 1e-3, pool, 0);
    } catch (const Error& error) {
      thrown = error.code() == ErrorCode::kInvalidArgument;
    }
    CHECK(thrown);
    CHECK(bytes_of(model.working) == before);
  }
}

}  // namespace

int main() {
  for (WeightType type : {WeightType::kFloat32, WeightType::kBFloat16})
    for (bool rounded : {false, true}) {
      if (rounded && type == WeightType::kBFloat16) continue;
      for (bool in_place : {false, true}) {
        against_float64(type, in_place, rounded);
        same_bits(type, in_place, rounded);
      }
      across(type, rounded);
    }
  bad_gradients_change_nothing();
  return 0;
}
