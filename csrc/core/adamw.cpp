#include "adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.h"
#include "parallel.h"
#include "stream.h"

namespace tttnn {

namespace {

constexpr std::size_t kPieceSize = 16384;  // elements; part of the norm's definition: changing it changes last bits
constexpr std::size_t kTaskSize = 65536;   // elements; small tensors are joined up to this
constexpr std::size_t kLanes = 32;         // of the norm's partial sums; part of its definition too
constexpr std::size_t kChunk = 1024;       // elements worked on in the first-level cache

// What is the same for all elements of one tensor in one step.
struct Scalars {
  float clip;       // min(1, clip_norm / (norm + 1e-6))
  float decay;      // 1 - lr * weight_decay
  float one_beta1;  // 1 - beta1
  float beta2;
  float one_beta2;        // 1 - beta2
  float over_root_bias2;  // 1 / sqrt(1 - beta2^t)
  float epsilon;
  float minus_step;  // -lr / (1 - beta1^t)
};

#define TTTNN_INLINE inline __attribute__((always_inline))

TTTNN_INLINE float widen(float value) { return value; }

TTTNN_INLINE float widen(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// To bfloat16, to nearest, ties to even, as torch rounds.
TTTNN_INLINE std::uint16_t narrow(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded);
}

template <typename T>
TTTNN_INLINE double square_sum(const T* __restrict gradient, std::size_t size) {
  double lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) {
      const double g = widen(gradient[i + l]);
      lanes[l] += g * g;
    }
  for (std::size_t l = 0; i + l < size; ++l) {
    const double g = widen(gradient[i + l]);
    lanes[l] += g * g;
  }
  for (std::size_t width = kLanes / 2; width > 0; width /= 2)
    for (std::size_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

// One element. m and v are values before and after.
TTTNN_INLINE float update(float p, float g, float& m, float& v, const Scalars& s) {
  g *= s.clip;
  p *= s.decay;
  m = m + s.one_beta1 * (g - m);
  v = v * s.beta2 + s.one_beta2 * g * g;
  const float denominator = std::sqrt(v) * s.over_root_bias2 + s.epsilon;
  return p + s.minus_step * m / denominator;
}

// The later steps: everything is read and written in place.
TTTNN_INLINE void in_place_float(float* __restrict p, float* __restrict m, float* __restrict v,
                                 const float* __restrict g, std::size_t size, const Scalars& scalars) {
  const Scalars s = scalars;
  for (std::size_t i = 0; i < size; ++i) p[i] = update(p[i], g[i], m[i], v[i], s);
}

TTTNN_INLINE void in_place_bfloat(std::uint16_t* __restrict w, float* __restrict p, float* __restrict m,
                                  float* __restrict v, const std::uint16_t* __restrict g, std::size_t size,
                                  const Scalars& scalars) {
  const Scalars s = scalars;
  for (std::size_t i = 0; i < size; ++i) {
    p[i] = update(p[i], widen(g[i]), m[i], v[i], s);
    w[i] = narrow(p[i]);
  }
}

// Lines that were read are in the cache, and a store around it would have to evict them first.
TTTNN_INLINE void write(void* destination, const void* source, std::size_t bytes, bool was_read, Stream stream) {
  if (was_read) {
    std::memcpy(destination, source, bytes);
  } else {
    stream(destination, source, bytes);
  }
}

// The first step: moments are not read when they are zero, weights come from `source` when they are fresh. Chunks are
// computed in the first-level cache; arrays that are written but not read are streamed out, so that their lines are not
// fetched first.
template <typename T, bool kFreshMoments>
TTTNN_INLINE void from_source(const T* source, T* weights, float* master, float* m, float* v, const T* __restrict g,
                              std::size_t size, const Scalars& scalars, Stream stream) {
  alignas(64) float new_p[kChunk];
  alignas(64) float new_m[kChunk];
  alignas(64) float new_v[kChunk];
  alignas(64) T new_w[kChunk];
  const Scalars s = scalars;
  const bool in_place = source == weights;
  for (std::size_t begin = 0; begin < size; begin += kChunk) {
    const std::size_t n = std::min(kChunk, size - begin);
    if (!kFreshMoments) {
      std::memcpy(new_m, m + begin, n * sizeof(float));
      std::memcpy(new_v, v + begin, n * sizeof(float));
    }
    for (std::size_t i = 0; i < n; ++i) {
      float mi = kFreshMoments ? 0.0f : new_m[i];
      float vi = kFreshMoments ? 0.0f : new_v[i];
      new_p[i] = update(widen(source[begin + i]), widen(g[begin + i]), mi, vi, s);
      new_m[i] = mi;
      new_v[i] = vi;
    }
    write(m + begin, new_m, n * sizeof(float), !kFreshMoments, stream);
    write(v + begin, new_v, n * sizeof(float), !kFreshMoments, stream);
    if constexpr (sizeof(T) == sizeof(float)) {
      write(weights + begin, new_p, n * sizeof(float), in_place, stream);
    } else {
      for (std::size_t i = 0; i < n; ++i) new_w[i] = narrow(new_p[i]);
      stream(master + begin, new_p, n * sizeof(float));
      write(weights + begin, new_w, n * sizeof(T), in_place, stream);
    }
  }
}

// Weights trained already in this query, moments zero (reset in between).
template <typename T>
TTTNN_INLINE void fresh_moments_only(T* __restrict weights, float* __restrict master, float* __restrict m,
                                     float* __restrict v, const T* __restrict g, std::size_t size,
                                     const Scalars& scalars) {
  const Scalars s = scalars;
  for (std::size_t i = 0; i < size; ++i) {
    float mi = 0.0f;
    float vi = 0.0f;
    if constexpr (sizeof(T) == sizeof(float)) {
      weights[i] = update(weights[i], g[i], mi, vi, s);
    } else {
      master[i] = update(master[i], widen(g[i]), mi, vi, s);
      weights[i] = narrow(master[i]);
    }
    m[i] = mi;
    v[i] = vi;
  }
}

// One piece of one tensor: addresses of its first element.
struct Work {
  const void* source;
  void* weights;
  float* master;
  float* m;
  float* v;
  const void* gradient;
  std::size_t size;
  WeightType type;
  bool fresh_weights;
  bool fresh_moments;
};

template <typename T>
TTTNN_INLINE void train(const Work& w, const Scalars& s, Stream stream) {
  const T* gradient = static_cast<const T*>(w.gradient);
  T* weights = static_cast<T*>(w.weights);
  if (w.fresh_weights) {
    const T* source = static_cast<const T*>(w.source);
    if (w.fresh_moments) {
      from_source<T, true>(source, weights, w.master, w.m, w.v, gradient, w.size, s, stream);
    } else {
      from_source<T, false>(source, weights, w.master, w.m, w.v, gradient, w.size, s, stream);
    }
  } else if (w.fresh_moments) {
    fresh_moments_only<T>(weights, w.master, w.m, w.v, gradient, w.size, s);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    in_place_float(weights, w.m, w.v, gradient, w.size, s);
  } else {
    in_place_bfloat(weights, w.master, w.m, w.v, gradient, w.size, s);
  }
}

struct Kernels {
  double (*square_sum)(const void* gradient, std::size_t size, WeightType type);
  void (*train)(const Work& work, const Scalars& scalars, Stream stream);
};

// The same code, compiled for each level: elementwise IEEE operations and fixed lanes give the same bits in all.
#define TTTNN_KERNELS(name, attributes)                                                             \
  attributes double square_sum_##name(const void* gradient, std::size_t size, WeightType type) {    \
    if (type == WeightType::kFloat32) return square_sum(static_cast<const float*>(gradient), size); \
    return square_sum(static_cast<const std::uint16_t*>(gradient), size);                           \
  }                                                                                                 \
  attributes void train_##name(const Work& work, const Scalars& scalars, Stream stream) {           \
    if (work.type == WeightType::kFloat32) return train<float>(work, scalars, stream);              \
    train<std::uint16_t>(work, scalars, stream);                                                    \
  }                                                                                                 \
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

}  // namespace

Adamw::Adamw(std::vector<AdamwTensor> tensors, const AdamwOptions& options, SimdLevel level)
    : tensors_(std::move(tensors)), options_(options), level_(level), states_(tensors_.size()) {
  std::size_t joined = kTaskSize;
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    for (std::size_t begin = 0; begin < tensors_[t].size; begin += kPieceSize) {
      const std::size_t size = std::min(kPieceSize, tensors_[t].size - begin);
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
  for (State& state : states_) state.fresh_weights = true;
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
    return static_cast<const char*>(gradient) + piece.begin * bytes_of(tensors_[piece.tensor].type);
  };

  pool.run(
      tasks_.size(),
      [&](std::size_t task) {
        for (std::size_t i = tasks_[task].begin; i < tasks_[task].end; ++i) {
          const void* gradient = gradient_of(pieces_[i]);
          partials_[i] = gradient == nullptr
                             ? 0.0
                             : kernel.square_sum(gradient, pieces_[i].size, tensors_[pieces_[i].tensor].type);
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

    const std::size_t weight = bytes_of(tensors_[t].type);
    const std::size_t trained = sizeof(float);  // the float32 weights or masters
    std::size_t per_element = 2 * weight;       // gradient: norm and update
    per_element += (state.fresh_weights ? weight : trained) + trained;
    if (tensors_[t].master != nullptr) per_element += weight;
    per_element += (state.fresh_moments ? 2 : 4) * sizeof(float);
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
          const std::size_t offset = piece.begin * bytes_of(tensor.type);
          Work work{};
          work.source = static_cast<const char*>(tensor.source) + offset;
          work.weights = static_cast<char*>(tensor.weights) + offset;
          work.master = tensor.master == nullptr ? nullptr : tensor.master + piece.begin;
          work.m = tensor.m + piece.begin;
          work.v = tensor.v + piece.begin;
          work.gradient = gradient;
          work.size = piece.size;
          work.type = tensor.type;
          work.fresh_weights = state.fresh_weights;
          work.fresh_moments = state.fresh_moments;
          kernel.train(work, scalars[piece.tensor], stream);
        }
        stream_fence();
      },
      max_threads);
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    if (gradients[t] == nullptr) continue;
    states_[t].fresh_weights = false;
    states_[t].fresh_moments = false;
    ++states_[t].steps;
  }
  return result;
}

}  // namespace tttnn
