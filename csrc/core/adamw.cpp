#include "adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"
#include "stream.h"

namespace tttnn {

namespace {

constexpr std::size_t kTaskSize = 65536;  // elements; small tensors are joined up to this
constexpr std::size_t kChunk = 1024;      // elements worked on in the first-level cache

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
                           float* __restrict v, const G* __restrict g, std::size_t size, float clip,
                           const AdamwScalars& scalars) {
  const AdamwScalars s = scalars;
  for (std::size_t i = 0; i < size; ++i) {
    p[i] = adamw_update(p[i], adamw_widen(g[i]), m[i], v[i], clip, s);
    if (kRounded) rounded[i] = adamw_narrow(p[i]);
  }
}

// A step that reads weights at `source` and writes them elsewhere, or whose moments are zero and need not be read.
// Chunks are computed in the first-level cache; arrays that are written but not read are streamed out, so that their
// lines are not fetched first.
template <typename S, typename G, bool kRounded, bool kFreshMoments>
TTTNN_INLINE void from_source(const S* source, float* p, std::uint16_t* rounded, float* m, float* v,
                              const G* __restrict g, std::size_t size, float clip, const AdamwScalars& scalars,
                              Stream stream) {
  alignas(64) float new_p[kChunk];
  alignas(64) float new_m[kChunk];
  alignas(64) float new_v[kChunk];
  alignas(64) std::uint16_t new_rounded[kChunk];
  const AdamwScalars s = scalars;
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
      new_p[i] = adamw_update(adamw_widen(source[begin + i]), adamw_widen(g[begin + i]), mi, vi, clip, s);
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

// Trains `size` elements of a row from `begin` on.
template <typename S, typename G, bool kRounded>
TTTNN_INLINE void train(const AdamwRow& row, std::size_t begin, std::size_t size, float clip, Stream stream) {
  const S* source = static_cast<const S*>(row.source) + begin;
  const G* gradient = static_cast<const G*>(row.gradient) + begin;
  std::uint16_t* rounded = kRounded ? row.rounded + begin : nullptr;
  float *p = row.p + begin, *m = row.m + begin, *v = row.v + begin;
  if (row.fresh_moments) {
    from_source<S, G, kRounded, true>(source, p, rounded, m, v, gradient, size, clip, row.scalars, stream);
  } else if (row.source != row.p) {
    from_source<S, G, kRounded, false>(source, p, rounded, m, v, gradient, size, clip, row.scalars, stream);
  } else {
    in_place<G, kRounded>(p, rounded, m, v, gradient, size, clip, row.scalars);
  }
}

struct Kernels {
  double (*square_sum)(const AdamwRow& row, std::size_t begin, std::size_t size);
  void (*train)(const AdamwRow& row, std::size_t begin, std::size_t size, float clip, Stream stream);
};

// The same code, compiled for each level: elementwise IEEE operations and fixed lanes give the same bits in all.
#define TTTNN_KERNELS(name, attributes)                                                                               \
  attributes double square_sum_##name(const AdamwRow& row, std::size_t begin, std::size_t size) {                     \
    if (row.rounded == nullptr) return square_sum(static_cast<const float*>(row.gradient) + begin, size);             \
    return square_sum(static_cast<const std::uint16_t*>(row.gradient) + begin, size);                                 \
  }                                                                                                                   \
  attributes void train_##name(const AdamwRow& row, std::size_t begin, std::size_t size, float clip, Stream stream) { \
    if (row.rounded == nullptr) return train<float, float, false>(row, begin, size, clip, stream);                    \
    if (!row.bfloat_source) return train<float, std::uint16_t, true>(row, begin, size, clip, stream);                 \
    train<std::uint16_t, std::uint16_t, true>(row, begin, size, clip, stream);                                        \
  }                                                                                                                   \
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

}  // namespace

Adamw::Adamw(std::vector<AdamwTensor> tensors, const AdamwOptions& options, SimdLevel level)
    : plan_(std::move(tensors), options), level_(level) {
  std::size_t joined = kTaskSize;
  const std::vector<AdamwRow>& rows = plan_.rows();
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t begin = 0; begin < rows[t].size; begin += kAdamwPieceSize) {
      const std::size_t size = std::min<std::size_t>(kAdamwPieceSize, rows[t].size - begin);
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

AdamwStep Adamw::step(const std::vector<AdamwInput>& inputs, double learning_rate, ThreadPool& pool, int max_threads) {
  AdamwStep result;
  result.bytes_moved = plan_.prepare(inputs, learning_rate);
  const std::vector<AdamwRow>& rows = plan_.rows();
  const Kernels& kernel = kernels(level_);
  pool.run(
      tasks_.size(),
      [&](std::size_t task) {
        for (std::size_t i = tasks_[task].begin; i < tasks_[task].end; ++i) {
          const AdamwRow& row = rows[pieces_[i].tensor];
          partials_[i] = row.gradient == nullptr ? 0.0 : kernel.square_sum(row, pieces_[i].begin, pieces_[i].size);
        }
      },
      max_threads);
  double sum = 0.0;
  for (double partial : partials_) sum += partial;
  const AdamwTotals totals = adamw_totals(sum, plan_.clip_norm());
  result.norm = totals.norm;
  plan_.settle(totals.norm);  // throws before anything is written

  const Stream stream = stream_copy();
  pool.run(
      tasks_.size(),
      [&](std::size_t task) {
        for (std::size_t i = tasks_[task].begin; i < tasks_[task].end; ++i) {
          const AdamwRow& row = rows[pieces_[i].tensor];
          if (row.gradient != nullptr) kernel.train(row, pieces_[i].begin, pieces_[i].size, totals.clip, stream);
        }
        stream_fence();
      },
      max_threads);
  return result;
}

}  // namespace tttnn
