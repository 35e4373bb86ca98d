#include "adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "adamw_element.h"
#include "error.h"
#include "parallel.h"
#include "stream.h"

namespace tttnn {

namespace {

constexpr std::size_t kTaskSize = 65536;  // elements; small tensors are joined up to this
constexpr std::size_t kChunk = 1024;      // elements worked on in the first-level cache

// What is the same for all elements of one tensor in one step.
struct Scalars : AdamwScalars {
  float clip;
};

#define TTTNN_INLINE inline __attribute__((always_inline))

template <typename T>
TTTNN_INLINE double square_sum(const T* __restrict gradient, std::size_t size) {
  double lanes[kAdamwLanes] = {};
  std::size_t i = 0;
  for (; i + kAdamwLanes <= size; i += kAdamwLanes)
    for (std::size_t l = 0; l < kAdamwLanes; ++l) {
      const double g = adamw_widen(gradient[i + l]);
      lanes[l] += g * g;
    }
  for (std::size_t l = 0; i + l < size; ++l) {
    const double g = adamw_widen(gradient[i + l]);
    lanes[l] += g * g;
  }
  for (std::size_t width = kAdamwLanes / 2; width > 0; width /= 2)
    for (std::size_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

// Lines that were read are in the cache, and a store around it would have to evict them first.
TTTNN_INLINE void write(void* destination, const void* source, std::size_t bytes, bool was_read, Stream stream) {
  if (was_read) {
    std::memcpy(destination, source, bytes);
  } else {
    stream(destination, source, bytes);
  }
}

// The later steps: everything is read and written in place. `rounded` gets the weights in bfloat16, where it is given.
template <typename G, bool kRounded>
TTTNN_INLINE void in_place(float* __restrict p, std::uint16_t* __restrict rounded, float* __restrict m,
                           float* __restrict v, const G* __restrict g, std::size_t size, const Scalars& scalars) {
  const Scalars s = scalars;
  for (std::size_t i = 0; i < size; ++i) {
    p[i] = adamw_update(p[i], adamw_widen(g[i]), m[i], v[i], s.clip, s);
    if (kRounded) rounded[i] = adamw_narrow(p[i]);
  }
}

// A step that reads weights at `source` and writes them elsewhere, or whose moments are zero and need not be read.
// Chunks are computed in the first-level cache; arrays that are written but not read are streamed out, so that their
// lines are not fetched first.
template <typename S, typename G, bool kRounded, bool kFreshMoments>
TTTNN_INLINE void from_source(const S* source, float* p, std::uint16_t* rounded, float* m, float* v,
                              const G* __restrict g, std::size_t size, const Scalars& scalars, Stream stream) {
  alignas(64) float new_p[kChunk];
  alignas(64) float new_m[kChunk];
  alignas(64) float new_v[kChunk];
  alignas(64) std::uint16_t new_rounded[kChunk];
  const Scalars s = scalars;
  const bool p_was_read = static_cast<const void*>(source) == p;
  const bool rounded_was_read = static_cast<const void*>(source) == rounded;
  for (std::size_t begin = 0; begin < size; begin += kChunk) {
    const std::size_t n = std::min(kChunk, size - begin);
    if (!kFreshMoments) {
      std::memcpy(new_m, m + begin, n * sizeof(float));
      std::memcpy(new_v, v + begin, n * sizeof(float));
    }
    for (std::size_t i = 0; i < n; ++i) {
      float mi = kFreshMoments ? 0.0f : new_m[i];
      float vi = kFreshMoments ? 0.0f : new_v[i];
      new_p[i] = adamw_update(adamw_widen(source[begin + i]), adamw_widen(g[begin + i]), mi, vi, s.clip, s);
      new_m[i] = mi;
      new_v[i] = vi;
    }
    write(m + begin, new_m, n * sizeof(float), !kFreshMoments, stream);
    write(v + begin, new_v, n * sizeof(float), !kFreshMoments, stream);
    write(p + begin, new_p, n * sizeof(float), p_was_read, stream);
    if (kRounded) {
      for (std::size_t i = 0; i < n; ++i) new_rounded[i] = adamw_narrow(new_p[i]);
      write(rounded + begin, new_rounded, n * sizeof(std::uint16_t), rounded_was_read, stream);
    }
  }
}

// One piece of one tensor: addresses of its first element.
struct Work {
  const void* source;  // weights before the step
  WeightType source_type;
  float* p;                // trained values after it: weights or masters
  std::uint16_t* rounded;  // their bfloat16 values: weights or shadow; or null
  float* m;
  float* v;
  const void* gradient;  // bfloat16 where `rounded` is given
  std::size_t size;
  bool fresh_moments;
};

template <typename S, typename G, bool kRounded>
TTTNN_INLINE void train(const Work& w, const Scalars& s, Stream stream) {
  const S* source = static_cast<const S*>(w.source);
  const G* gradient = static_cast<const G*>(w.gradient);
  if (w.fresh_moments) {
    from_source<S, G, kRounded, true>(source, w.p, w.rounded, w.m, w.v, gradient, w.size, s, stream);
  } else if (w.source != w.p) {
    from_source<S, G, kRounded, false>(source, w.p, w.rounded, w.m, w.v, gradient, w.size, s, stream);
  } else {
    in_place<G, kRounded>(w.p, w.rounded, w.m, w.v, gradient, w.size, s);
  }
}

struct Kernels {
  double (*square_sum)(const void* gradient, std::size_t size, bool bfloat);
  void (*train)(const Work& work, const Scalars& scalars, Stream stream);
};

// The same code, compiled for each level: elementwise IEEE operations and fixed lanes give the same bits in all.
#define TTTNN_KERNELS(name, attributes)                                                                            \
  attributes double square_sum_##name(const void* gradient, std::size_t size, bool bfloat) {                       \
    if (bfloat) return square_sum(static_cast<const std::uint16_t*>(gradient), size);                              \
    return square_sum(static_cast<const float*>(gradient), size);                                                  \
  }                                                                                                                \
  attributes void train_##name(const Work& work, const Scalars& scalars, Stream stream) {                          \
    if (work.rounded == nullptr) return train<float, float, false>(work, scalars, stream);                         \
    if (work.source_type == WeightType::kFloat32) return train<float, std::uint16_t, true>(work, scalars, stream); \
    train<std::uint16_t, std::uint16_t, true>(work, scalars, stream);                                              \
  }                                                                                                                \
  constexpr Kernels kKernels_##name{square_sum_##name, train_##name};

TTTNN_KERNELS(plain, )
#if defined(__x86_64__)
TTTNN_KERNELS(v3, __attribute__((target("avx2"))))
#if defined(__clang__)
TTTNN_KERNELS(v4, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#else
TTTNN_KERNELS(v4, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif
#endif

const Kernels& kernels(SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::kV4) return kKernels_v4;
  if (level == SimdLevel::kV3) return kKernels_v3;
#endif
  (void)level;
  return kKernels_plain;
}

std::size_t bytes_of(WeightType type) { return type == WeightType::kFloat32 ? 4 : 2; }

bool bfloat_gradient(const AdamwTensor& tensor) {
  return tensor.type == WeightType::kBFloat16 || tensor.shadow != nullptr;
}

}  // namespace

Adamw::Adamw(std::vector<AdamwTensor> tensors, const AdamwOptions& options, SimdLevel level)
    : tensors_(std::move(tensors)), options_(options), level_(level), states_(tensors_.size()) {
  std::size_t joined = kTaskSize;
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    for (std::size_t begin = 0; begin < tensors_[t].size; begin += kAdamwPieceSize) {
      const std::size_t size = std::min(kAdamwPieceSize, tensors_[t].size - begin);
      if (joined + size > kTaskSize) {
        tasks_.push_back({pieces_.size(), pieces_.size()});
        joined = 0;
      }
      joined += size;
      pieces_.push_back({t, begin, size});
      tasks_.back().end = pieces_.size();
    }
  }
  partials_.resize(pieces_.size());
}

void Adamw::fresh_weights() noexcept {
  for (State& state : states_) state.place = state.kept = 0;
}

void Adamw::keep() {
  for (const AdamwTensor& tensor : tensors_)
    if (tensor.other == nullptr)
      throw Error(ErrorCode::kInvalidArgument, "tensors must have two places to keep weights in one, got one");
  for (State& state : states_) state.kept = state.place;
}

std::vector<int> Adamw::places() const {
  std::vector<int> places;
  places.reserve(states_.size());
  for (const State& state : states_) places.push_back(state.place);
  return places;
}

void Adamw::fresh_moments() noexcept {
  for (State& state : states_) {
    state.fresh_moments = true;
    state.steps = 0;
  }
}

AdamwStep Adamw::step(const std::vector<const void*>& gradients, double learning_rate, ThreadPool& pool,
                      int max_threads) {
  if (gradients.size() != tensors_.size())
    throw Error(ErrorCode::kInvalidArgument, "gradients must be one per tensor (" + std::to_string(tensors_.size()) +
                                                 "), got " + std::to_string(gradients.size()));
  const Kernels& kernel = kernels(level_);

  const auto gradient_of = [&](const Piece& piece) -> const void* {
    const void* gradient = gradients[piece.tensor];
    if (gradient == nullptr) return nullptr;
    return static_cast<const char*>(gradient) + piece.begin * (bfloat_gradient(tensors_[piece.tensor]) ? 2 : 4);
  };

  pool.run(
      tasks_.size(),
      [&](std::size_t task) {
        for (std::size_t i = tasks_[task].begin; i < tasks_[task].end; ++i) {
          const void* gradient = gradient_of(pieces_[i]);
          partials_[i] = gradient == nullptr ? 0.0
                                             : kernel.square_sum(gradient, pieces_[i].size,
                                                                 bfloat_gradient(tensors_[pieces_[i].tensor]));
        }
      },
      max_threads);
  double sum = 0.0;
  for (double partial : partials_) sum += partial;
  AdamwStep result;
  result.norm = std::sqrt(sum);
  result.bytes_moved = 0;
  if (!std::isfinite(result.norm))
    throw Error(ErrorCode::kNonFinite, "gradient norm must be finite, got " + std::to_string(result.norm) +
                                           ". No weight was changed by this step.");

  Scalars common{};
  common.clip = static_cast<float>(std::min(1.0, options_.clip_norm / (result.norm + 1e-6)));
  common.decay = static_cast<float>(1.0 - learning_rate * options_.weight_decay);
  common.one_beta1 = static_cast<float>(1.0 - options_.beta1);
  common.beta2 = static_cast<float>(options_.beta2);
  common.one_beta2 = static_cast<float>(1.0 - options_.beta2);
  common.epsilon = static_cast<float>(options_.epsilon);
  std::vector<Scalars> scalars(tensors_.size(), common);
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    if (gradients[t] == nullptr) continue;
    const State& state = states_[t];
    const double steps = static_cast<double>(state.steps + 1);
    scalars[t].over_root_bias2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(options_.beta2, steps)));
    scalars[t].minus_step = static_cast<float>(-learning_rate / (1.0 - std::pow(options_.beta1, steps)));

    const bool rounded = bfloat_gradient(tensors_[t]);
    std::size_t per_element = 2 * (rounded ? 2 : 4);  // gradient: norm and update
    per_element += (state.place == 0 ? bytes_of(tensors_[t].type) : 4) + 4 + (rounded ? 2 : 0);
    per_element += state.fresh_moments ? 8 : 16;
    result.bytes_moved += per_element * tensors_[t].size;
  }

  const Stream stream = stream_copy();
  pool.run(
      tasks_.size(),
      [&](std::size_t task) {
        for (std::size_t i = tasks_[task].begin; i < tasks_[task].end; ++i) {
          const Piece& piece = pieces_[i];
          const void* gradient = gradient_of(piece);
          if (gradient == nullptr) continue;
          const AdamwTensor& tensor = tensors_[piece.tensor];
          const State& state = states_[piece.tensor];
          const auto at = [&](int place) {
            void* const places[] = {const_cast<void*>(tensor.source), tensor.weights, tensor.other};
            return static_cast<char*>(places[place]) + piece.begin * bytes_of(tensor.type);
          };
          Work work{};
          char* const target = at(state.next_place());
          if (tensor.type == WeightType::kFloat32) {
            work.source = at(state.place);
            work.source_type = WeightType::kFloat32;
            work.p = reinterpret_cast<float*>(target);
            work.rounded = tensor.shadow == nullptr ? nullptr : tensor.shadow + piece.begin;
          } else {
            // Steps after the first go on in the masters, wherever the rounded weights are written.
            work.p = tensor.master + piece.begin;
            work.source = state.place == 0 ? static_cast<const void*>(at(0)) : work.p;
            work.source_type = state.place == 0 ? WeightType::kBFloat16 : WeightType::kFloat32;
            work.rounded = reinterpret_cast<std::uint16_t*>(target);
          }
          work.m = tensor.m + piece.begin;
          work.v = tensor.v + piece.begin;
          work.gradient = gradient;
          work.size = piece.size;
          work.fresh_moments = state.fresh_moments;
          kernel.train(work, scalars[piece.tensor], stream);
        }
        stream_fence();
      },
      max_threads);
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    if (gradients[t] == nullptr) continue;
    states_[t].place = states_[t].next_place();
    states_[t].fresh_moments = false;
    ++states_[t].steps;
  }
  return result;
}

}  // namespace tttnn
