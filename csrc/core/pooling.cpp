#include "pooling.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "error.h"
#include "lanes.h"
#include "parallel.h"

namespace tttnn {

namespace {

constexpr std::size_t kWidth = 8;
using Floats = lanes::Eight;
typedef std::uint32_t Words __attribute__((vector_size(kWidth * sizeof(std::uint32_t))));

constexpr float kSmallestLength = 1e-12f;           // as torch.nn.functional.normalize
constexpr std::size_t kElementsPerTask = 1u << 16;  // below this a thread costs more than it saves

// bfloat16 is the upper half of a float32.
TTTNN_INLINE void load_hidden(const std::uint16_t* from, Floats& to) {
  typedef std::uint16_t Halves __attribute__((vector_size(kWidth * sizeof(std::uint16_t))));
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&to, &words, sizeof(to));
}
TTTNN_INLINE void load_hidden(const float* from, Floats& to) { lanes::load(from, to); }

inline float to_float(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}
inline float to_float(float value) { return value; }

template <typename T>
TTTNN_INLINE void add_token(const T* token, std::size_t dim, float* out) {
  Floats total, x;
  std::size_t d = 0;
  for (; d + kWidth <= dim; d += kWidth) {
    lanes::load(out + d, total);
    load_hidden(token + d, x);
    total += x;
    lanes::store(total, out + d);
  }
  for (; d < dim; ++d) out[d] += to_float(token[d]);
}

// Pools one row into `out` (dim floats); returns whether it is finite.
template <typename T>
TTTNN_INLINE bool pool_row(const T* row, const std::uint8_t* mask, std::size_t tokens, std::size_t dim, float* out,
                           Pooling pooling, bool normalize) {
  std::memset(out, 0, dim * sizeof(float));
  std::size_t count = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    if (mask != nullptr && mask[t] == 0) continue;
    ++count;
    add_token(row + t * dim, dim, out);
    if (pooling == Pooling::kCls) break;
  }
  if (count == 0) return true;
  const float divisor = static_cast<float>(count);
  Floats squares = {}, x;
  std::size_t d = 0;
  for (; d + kWidth <= dim; d += kWidth) {
    lanes::load(out + d, x);
    x /= divisor;
    lanes::store(x, out + d);
    squares += x * x;
  }
  float left = 0.0f;
  for (; d < dim; ++d) {
    out[d] /= divisor;
    left += out[d] * out[d];
  }
  float sixteen[2 * kWidth] = {};
  lanes::store(squares, sixteen);
  const float length = std::sqrt(lanes::sum(sixteen) + left);
  // The square of a finite vector may still overflow: then each element is asked.
  if (!std::isfinite(length))
    for (std::size_t i = 0; i < dim; ++i)
      if (!std::isfinite(out[i])) return false;
  if (!normalize) return true;
  if (!std::isfinite(length)) return false;
  const float scale = std::max(length, kSmallestLength);
  for (d = 0; d + kWidth <= dim; d += kWidth) {
    lanes::load(out + d, x);
    x /= scale;
    lanes::store(x, out + d);
  }
  for (; d < dim; ++d) out[d] /= scale;
  return true;
}

// One text: its first token and, for each of its tokens, whether it is real (null: all are).
struct Text {
  const void* states;
  const std::uint8_t* mask;
  std::size_t tokens;
};
using TextFn = bool (*)(const Text&, std::size_t, float*, const PoolOptions&);

#define TTTNN_POOL_TEXT(name, target)                                                                      \
  template <typename T>                                                                                    \
  target bool name(const Text& text, std::size_t dim, float* out, const PoolOptions& options) {            \
    return pool_row(static_cast<const T*>(text.states), text.mask, text.tokens, dim, out, options.pooling, \
                    options.normalize);                                                                    \
  }
TTTNN_POOL_TEXT(pool_text_baseline, )
TTTNN_POOL_TEXT(pool_text_v2, TTTNN_TARGET_V2)
TTTNN_POOL_TEXT(pool_text_v3, TTTNN_TARGET_V3)
TTTNN_POOL_TEXT(pool_text_v4, TTTNN_TARGET_V4)
#undef TTTNN_POOL_TEXT

template <typename T>
TextFn choose(SimdLevel level) {
  switch (level) {
    case SimdLevel::kV4:
      return pool_text_v4<T>;
    case SimdLevel::kV3:
      return pool_text_v3<T>;
    case SimdLevel::kV2:
      return pool_text_v2<T>;
    case SimdLevel::kBaseline:
      break;
  }
  return pool_text_baseline<T>;
}

// Pools texts at(0) ... at(texts - 1), a task those of about kElementsPerTask.
template <typename At>
std::ptrdiff_t pool_texts(std::size_t texts, std::size_t elements, HiddenType type, std::size_t dim, const At& at,
                          const std::int64_t* rows, float* out, const PoolOptions& options) {
  const TextFn pool_text =
      type == HiddenType::kFloat32 ? choose<float>(options.level) : choose<std::uint16_t>(options.level);
  const std::size_t mean = std::max<std::size_t>(1, elements / std::max<std::size_t>(1, texts));
  const std::size_t texts_per_task = std::max<std::size_t>(1, kElementsPerTask / mean);
  const std::size_t tasks = (texts + texts_per_task - 1) / texts_per_task;
  std::atomic<std::ptrdiff_t> first_bad{std::numeric_limits<std::ptrdiff_t>::max()};
  const auto task = [&](std::size_t i) {
    const std::size_t end = std::min(texts, (i + 1) * texts_per_task);
    for (std::size_t t = i * texts_per_task; t < end; ++t) {
      if (pool_text(at(t), dim, out + static_cast<std::size_t>(rows[t]) * dim, options)) continue;
      const auto bad = static_cast<std::ptrdiff_t>(t);
      std::ptrdiff_t seen = first_bad.load();
      while (bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
      }
      break;
    }
  };
  if (tasks == 1) {
    task(0);
  } else {
    shared_pool().run(tasks, task, options.threads);
  }
  const std::ptrdiff_t bad = first_bad.load();
  return bad == std::numeric_limits<std::ptrdiff_t>::max() ? -1 : bad;
}

const char* state(const void* data, HiddenType type, std::size_t element) {
  return static_cast<const char*>(data) + element * (type == HiddenType::kFloat32 ? 4 : 2);
}

}  // namespace

std::ptrdiff_t pool(const HiddenStates& hidden, const std::int64_t* rows, float* out, const PoolOptions& options) {
  const std::size_t size = hidden.tokens * hidden.dim;
  const auto at = [&](std::size_t i) {
    return Text{state(hidden.data, hidden.type, i * size),
                hidden.mask == nullptr ? nullptr : hidden.mask + i * hidden.tokens, hidden.tokens};
  };
  return pool_texts(hidden.batch, hidden.batch * size, hidden.type, hidden.dim, at, rows, out, options);
}

std::ptrdiff_t pool_packed(const PackedStates& hidden, const std::int64_t* rows, float* out,
                           const PoolOptions& options) {
  const auto token = [&](std::size_t i) { return static_cast<std::size_t>(hidden.offsets[i]); };
  const auto at = [&](std::size_t i) {
    return Text{state(hidden.data, hidden.type, token(i) * hidden.dim), nullptr, token(i + 1) - token(i)};
  };
  return pool_texts(hidden.texts, token(hidden.texts) * hidden.dim, hidden.type, hidden.dim, at, rows, out, options);
}

void pool_reference(const HiddenStates& hidden, const std::int64_t* rows, float* out, const PoolOptions& options) {
  std::vector<double> total(hidden.dim);
  for (std::size_t b = 0; b < hidden.batch; ++b) {
    std::fill(total.begin(), total.end(), 0.0);
    double count = 0.0;
    for (std::size_t t = 0; t < hidden.tokens; ++t) {
      if (hidden.mask != nullptr && hidden.mask[b * hidden.tokens + t] == 0) continue;
      count += 1.0;
      for (std::size_t d = 0; d < hidden.dim; ++d) {
        const std::size_t at = (b * hidden.tokens + t) * hidden.dim + d;
        total[d] += hidden.type == HiddenType::kFloat32 ? static_cast<const float*>(hidden.data)[at]
                                                        : to_float(static_cast<const std::uint16_t*>(hidden.data)[at]);
      }
      if (options.pooling == Pooling::kCls) break;
    }
    double squares = 0.0;
    for (double& value : total) {
      value /= std::max(count, 1.0);
      squares += value * value;
    }
    const double scale = options.normalize ? std::max(std::sqrt(squares), static_cast<double>(kSmallestLength)) : 1.0;
    float* row = out + static_cast<std::size_t>(rows[b]) * hidden.dim;
    for (std::size_t d = 0; d < hidden.dim; ++d) row[d] = static_cast<float>(total[d] / scale);
  }
}

#if !defined(TTTNN_HAS_CUDA)
void pool_cuda(const HiddenStates&, const std::int64_t*, float*, std::int32_t*, const PoolOptions&, void*) {
  throw Error(ErrorCode::kDevice, "device must be cpu in this build, got cuda. Install a build with CUDA.");
}
#endif

}  // namespace tttnn
