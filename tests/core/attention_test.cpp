// Attention with both kinds of kernels against the formula in doubles; the same bits for any number of threads. Run it
// under AddressSanitizer: inputs and outputs lie at the very end of their allocations.
#include <attention.h>
#include <error.h>
#include <parallel.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

using namespace tttnn;

namespace {

double widen(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// A bfloat16 tensor (heads, tokens, dim) in the memory order (tokens, heads, dim), with a gap after each token.
struct Tensor {
  Tensor(std::size_t heads_, std::size_t tokens_, std::size_t dim_, std::size_t gap)
      : tokens(tokens_), dim(dim_), token(heads_ * dim_ + gap), values(tokens_ * token - gap) {}
  void fill(std::mt19937& random, float spread) {
    std::normal_distribution<float> normal(0.0f, spread);
    for (auto& value : values) {
      const float drawn = normal(random);
      std::uint32_t word;
      std::memcpy(&word, &drawn, sizeof(word));
      value = static_cast<std::uint16_t>(word >> 16);
    }
  }
  double at(std::size_t h, std::size_t t, std::size_t c) const { return widen(values[h * dim + t * token + c]); }
  AttentionInput input() const { return {values.data(), dim, token}; }
  AttentionOutput output() { return {values.data(), dim, token}; }

  std::size_t tokens, dim, token;
  std::vector<std::uint16_t> values;
};

struct Answer {
  Answer(const AttentionShape& s)
      : out(s.heads, s.tokens, s.dim, 0),
        dq(s.heads, s.tokens, s.dim, 8),
        dk(s.kv_heads, s.tokens, s.dim, 0),
        dv(s.kv_heads, s.tokens, s.dim, 0),
        lse(s.heads * s.tokens) {}
  bool operator==(const Answer& other) const {
    return out.values == other.out.values && dq.values == other.dq.values && dk.values == other.dk.values &&
           dv.values == other.dv.values && std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
  Tensor out, dq, dk, dv;
  std::vector<float> lse;
};

struct Given {
  Given(const AttentionShape& s, std::mt19937& random)
      : q(s.heads, s.tokens, s.dim, 3),
        k(s.kv_heads, s.tokens, s.dim, 5),
        v(s.kv_heads, s.tokens, s.dim, 0),
        upstream(s.heads, s.tokens, s.dim, 1) {
    q.fill(random, 2.0f);
    k.fill(random, 2.0f);
    v.fill(random, 1.0f);
    upstream.fill(random, 1.0f);
  }
  Tensor q, k, v, upstream;
};

Answer attend(Attention& attention, const AttentionShape& shape, const Given& given, ThreadPool& pool) {
  Answer answer(shape);
  attention.forward(shape, given.q.input(), given.k.input(), given.v.input(), answer.out.output(), answer.lse.data(),
                    pool, 0);
  attention.backward(shape, given.q.input(), given.k.input(), given.v.input(), answer.out.input(), answer.lse.data(),
                     given.upstream.input(), answer.dq.output(), answer.dk.output(), answer.dv.output(), pool, 0);
  return answer;
}

// The formula, query after query. All as (heads, tokens, dim).
struct Exact {
  Exact(const AttentionShape& s, const Given& given)
      : shape(s),
        out(s.heads * s.tokens * s.dim),
        dq(out.size()),
        dk(s.kv_heads * s.tokens * s.dim),
        dv(dk.size()),
        lse(s.heads * s.tokens) {
    const std::size_t n = s.tokens, d = s.dim;
    std::vector<double> p(n), up(n);
    for (std::size_t h = 0; h < s.heads; ++h)
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t kv = h / (s.heads / s.kv_heads);
        double sum = 0.0, delta = 0.0;
        for (std::size_t j = 0; j <= i; ++j) {
          double score = 0.0;
          up[j] = 0.0;
          for (std::size_t c = 0; c < d; ++c) {
            score += given.q.at(h, i, c) * given.k.at(kv, j, c);
            up[j] += given.upstream.at(h, i, c) * given.v.at(kv, j, c);
          }
          p[j] = std::exp(score * static_cast<double>(s.scale));
          sum += p[j];
        }
        for (std::size_t j = 0; j <= i; ++j) {
          p[j] /= sum;
          delta += p[j] * up[j];
        }
        lse[h * n + i] = std::log(sum);
        for (std::size_t j = 0; j <= i; ++j)
          for (std::size_t c = 0; c < d; ++c) {
            const double slope = p[j] * (up[j] - delta) * static_cast<double>(s.scale);
            const std::size_t query = (h * n + i) * d + c, key = (kv * n + j) * d + c;
            out[query] += p[j] * given.v.at(kv, j, c);
            dq[query] += slope * given.k.at(kv, j, c);
            dk[key] += slope * given.q.at(h, i, c);
            dv[key] += p[j] * given.upstream.at(h, i, c);
          }
      }
  }
  AttentionShape shape;
  std::vector<double> out, dq, dk, dv, lse;
};

void near(const Tensor& found, const std::vector<double>& expected, std::size_t heads, double tolerance) {
  double error = 0.0, length = 0.0;
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < found.tokens; ++t)
      for (std::size_t c = 0; c < found.dim; ++c) {
        const double truth = expected[(h * found.tokens + t) * found.dim + c];
        error += (found.at(h, t, c) - truth) * (found.at(h, t, c) - truth);
        length += truth * truth;
      }
  // The absolute part is for slopes of 0 (a single token), where rounding of the output is all there is.
  CHECK(std::sqrt(error) <= tolerance * std::sqrt(length) + 0.01);
}

std::vector<AttentionKernels> kinds() {
  if (attention_supported()) return {AttentionKernels::kPortable, AttentionKernels::kAvx512Bf16};
  return {AttentionKernels::kPortable};
}

void against_doubles(const AttentionShape& shape) {
  std::mt19937 random(static_cast<unsigned>(shape.tokens));
  const Given given(shape, random);
  const Exact exact(shape, given);
  for (AttentionKernels kind : kinds()) {
    Attention attention(kind);
    ThreadPool one(1);
    const Answer first = attend(attention, shape, given, one);
    // bfloat16 rounds to 2^-9: outputs, probabilities and their slopes.
    near(first.out, exact.out, shape.heads, 3e-3);
    near(first.dq, exact.dq, shape.heads, 1e-2);
    near(first.dk, exact.dk, shape.kv_heads, 1e-2);
    near(first.dv, exact.dv, shape.kv_heads, 5e-3);
    for (std::size_t i = 0; i < exact.lse.size(); ++i)
      CHECK(std::fabs(static_cast<double>(first.lse[i]) - exact.lse[i]) <= 1e-4);
    for (int threads : {2, 3}) {
      ThreadPool pool(threads);
      CHECK(attend(attention, shape, given, pool) == first);
    }
  }
}

// Each sequence of a packed call against the formula in doubles; its bits are those it gives alone, whatever the
// threads.
void packed_against_doubles(const AttentionShape& shape, const std::vector<std::int64_t>& bounds) {
  const std::vector<std::size_t> offsets(bounds.begin(), bounds.end());
  std::mt19937 random(static_cast<unsigned>(shape.tokens));
  const Given given(shape, random);
  std::vector<double> exact(shape.heads * shape.tokens * shape.dim);
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s)
    for (std::size_t h = 0; h < shape.heads; ++h)
      for (std::size_t i = offsets[s]; i < offsets[s + 1]; ++i) {
        const std::size_t kv = h / (shape.heads / shape.kv_heads);
        std::vector<double> p;
        double sum = 0.0;
        for (std::size_t j = offsets[s]; j < offsets[s + 1]; ++j) {
          double score = 0.0;
          for (std::size_t c = 0; c < shape.dim; ++c) score += given.q.at(h, i, c) * given.k.at(kv, j, c);
          p.push_back(std::exp(score * static_cast<double>(shape.scale)));
          sum += p.back();
        }
        for (std::size_t j = offsets[s]; j < offsets[s + 1]; ++j)
          for (std::size_t c = 0; c < shape.dim; ++c)
            exact[(h * shape.tokens + i) * shape.dim + c] += p[j - offsets[s]] / sum * given.v.at(kv, j, c);
      }
  for (AttentionKernels kind : kinds()) {
    Attention attention(kind);
    const auto attended = [&](int threads, const std::vector<std::int64_t>& some) {
      ThreadPool pool(threads);
      Tensor out(shape.heads, shape.tokens, shape.dim, 0);
      attention.forward_packed(shape, some, given.q.input(), given.k.input(), given.v.input(), out.output(), pool, 0);
      return out;
    };
    const Tensor first = attended(1, bounds);
    near(first, exact, shape.heads, 3e-3);
    for (int threads : {2, 3}) CHECK(attended(threads, bounds).values == first.values);
    for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
      const Tensor alone = attended(1, {bounds[s], bounds[s + 1]});
      for (std::size_t at = 0; at < alone.values.size(); ++at) {
        const std::size_t token = at / alone.token;
        const bool inside = offsets[s] <= token && token < offsets[s + 1];
        CHECK(alone.values[at] == (inside ? first.values[at] : 0));
      }
    }
  }
}

void bad_offsets_are_refused() {
  ThreadPool pool(1);
  Attention attention(AttentionKernels::kPortable);
  const AttentionShape shape{1, 1, 4, 32, 1.0f};
  for (const std::vector<std::int64_t>& offsets :
       std::vector<std::vector<std::int64_t>>{{0, 5}, {0, 3, 2, 4}, {-1, 4}}) {
    bool thrown = false;
    try {
      attention.forward_packed(shape, offsets, {}, {}, {}, {}, pool, 0);
    } catch (const Error& error) {
      thrown = error.code() == ErrorCode::kInvalidArgument && std::string(error.what()).find("offsets must") == 0;
    }
    CHECK(thrown);
  }
  attention.forward_packed(shape, {}, {}, {}, {}, {}, pool, 0);
  attention.forward_packed(shape, {0, 0}, {}, {}, {}, {}, pool, 0);
}

// Two callers at once, of different shapes, on one object and one pool.
void several_callers() {
  std::mt19937 random(1);
  const AttentionShape shapes[] = {{3, 1, 150, 32, 0.2f}, {2, 2, 90, 48, 0.1f}};
  ThreadPool pool(2);
  for (AttentionKernels kind : kinds()) {
    Attention attention(kind);
    std::vector<std::thread> callers;
    for (const AttentionShape& shape : shapes) {
      const Given given(shape, random);
      callers.emplace_back([&attention, &pool, shape, given] {
        const Answer first = attend(attention, shape, given, pool);
        for (int i = 0; i < 3; ++i) CHECK(attend(attention, shape, given, pool) == first);
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
}

void bad_shapes_are_refused() {
  ThreadPool pool(1);
  Attention attention(AttentionKernels::kPortable);
  const AttentionShape bad[] = {{0, 1, 4, 32, 1.0f},  {4, 0, 4, 32, 1.0f}, {4, 3, 4, 32, 1.0f},  {4, 2, 0, 32, 1.0f},
                                {4, 2, 4, 40, 1.0f},  {4, 2, 4, 16, 1.0f}, {4, 2, 4, 272, 1.0f}, {4, 2, 4, 32, 0.0f},
                                {4, 2, 4, 32, -1.0f}, {4, 2, 4, 32, NAN}};
  for (const AttentionShape& shape : bad) {
    bool thrown = false;
    try {
      attention.forward(shape, {}, {}, {}, {}, nullptr, pool, 0);
    } catch (const Error& error) {
      thrown =
          error.code() == ErrorCode::kInvalidArgument && std::string(error.what()).find("must") != std::string::npos;
    }
    CHECK(thrown);
  }
}

}  // namespace

int main() {
  for (const AttentionShape& shape : std::vector<AttentionShape>{{2, 1, 1, 32, 0.2f},
                                                                 {2, 2, 16, 48, 0.15f},
                                                                 {3, 1, 65, 64, 0.125f},
                                                                 {1, 1, 127, 80, 0.1f},
                                                                 {4, 2, 200, 32, 0.2f},
                                                                 {18, 9, 70, 32, 0.2f},
                                                                 {1, 1, 66, 256, 0.06f}})
    against_doubles(shape);
  packed_against_doubles({2, 2, 9, 32, 0.2f}, {0, 1, 1, 3, 9});
  packed_against_doubles({3, 1, 330, 48, 0.15f}, {0, 64, 129, 130, 330});
  packed_against_doubles({2, 1, 200, 64, 0.125f}, {0, 33, 200});
  packed_against_doubles({1, 1, 90, 256, 0.06f}, {0, 17, 90});
  several_callers();
  bad_shapes_are_refused();
  bad_offsets_are_refused();
  return 0;
}
