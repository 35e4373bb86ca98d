// Self-attention in bfloat16 on a processor: causal and of one sequence, with gradients, for a training step; without a
// mask inside each of many sequences that stand one after the other, for an encoder.
//
// Formulas: softmax attention tiled over keys, probabilities computed again from their log-sum-exp in the backward pass
// (Dao et al., "FlashAttention", arXiv:2205.14135; "FlashAttention-2", arXiv:2307.08691). Products multiply bfloat16
// and add in float32; probabilities and their gradients are rounded to bfloat16 where they enter a product, all sums
// and gradients stay in float32 until they are written.
//
// The same bits for any number of threads: work is cut by the shape alone and partial sums are added in one order. The
// two kinds of kernels differ in their last bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "parallel.h"

namespace tttnn {

enum class AttentionKernels {
  kPortable,    // plain loops: what the tests hold the algorithm against on any processor; slow
  kAvx512Bf16,  // needs attention_supported()
};

// Whether this processor has AVX-512 with bfloat16 products.
bool attention_supported() noexcept;

// Query heads share key/value heads in groups of heads / kv_heads: query head h reads kv head h / group.
struct AttentionShape {
  std::size_t heads;
  std::size_t kv_heads;  // divides heads
  std::size_t tokens;    // at least 1
  std::size_t dim;       // of a head: a multiple of 16 from 32 to 256
  float scale;           // of the scores; above 0
};

// bfloat16 (heads, tokens, dim): element (h, t, c) lies at data[h * head + t * token + c]. Strides in elements.
template <typename T>
struct AttentionView {
  T* data;
  std::size_t head;
  std::size_t token;
};
using AttentionInput = AttentionView<const std::uint16_t>;
using AttentionOutput = AttentionView<std::uint16_t>;

// Keeps its scratch memory between calls, which may come from several threads: each call takes a block of its own.
// The backward pass takes 22 to 30 bytes per element of q (8 MB for 512 tokens and 9 heads of 64 on 3), more for few
// heads.
// Callers own every buffer of the arguments and keep it alive and unchanged during a call. Throws kInvalidArgument for
// a shape outside of the limits above.
class Attention {
 public:
  explicit Attention(AttentionKernels kernels) : kernels_(kernels) {}
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  // out = softmax(scale * q k^T, keys up to the query) v; lse (heads, tokens): natural logarithm of the softmax's sum.
  void forward(const AttentionShape& shape, AttentionInput q, AttentionInput k, AttentionInput v, AttentionOutput out,
               float* lse, ThreadPool& pool, int max_threads);

  // Gradients of q, k and v for the gradient of out. `out` and `lse` are what forward wrote.
  void backward(const AttentionShape& shape, AttentionInput q, AttentionInput k, AttentionInput v, AttentionInput out,
                const float* lse, AttentionInput dout, AttentionOutput dq, AttentionOutput dk, AttentionOutput dv,
                ThreadPool& pool, int max_threads);

  // out = softmax(scale * q k^T) v, every token of a sequence seeing all of it and nothing else. Sequence i is the
  // tokens [offsets[i], offsets[i + 1]) of the same q, k, v and out, which have shape.tokens tokens; out stays as it is
  // where no sequence lies. What a sequence gives does not depend on the others, to the bit. Takes 4 bytes per element
  // of a sequence's head and thread.
  void forward_packed(const AttentionShape& shape, const std::vector<std::int64_t>& offsets, AttentionInput q,
                      AttentionInput k, AttentionInput v, AttentionOutput out, ThreadPool& pool, int max_threads);

 private:
  struct Scratch {
    struct Free {
      void operator()(void* memory) const noexcept;
    };
    std::unique_ptr<void, Free> memory;
    std::size_t bytes = 0;
  };
  Scratch take(std::size_t bytes);
  void give(Scratch scratch) noexcept;

  AttentionKernels kernels_;
  std::mutex mutex_;
  std::vector<Scratch> idle_;  // guarded by mutex_
};

}  // namespace tttnn
