// The inner loops of attention.cpp, as a table of functions: in plain C++, and for AVX-512 with bfloat16 products.
//
// bfloat16 is held in std::uint16_t. A matrix is "paired" when a 32-bit word holds two neighbors along the dimension
// that a product sums over, the lower one in the lower half.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tttnn {

struct AttentionLoops {
  // c (rows, columns) = or += a (rows, 2 pairs) b (pairs, columns) with b paired; rows a multiple of 4, columns of 16.
  // Strides in elements.
  void (*multiply)(const std::uint16_t* a, std::size_t a_stride, const std::uint32_t* b, std::size_t b_stride, float* c,
                   std::size_t c_stride, std::size_t rows, std::size_t columns, std::size_t pairs, bool add);

  // to (16, 16) = the transpose of from (16, 16), 32-bit words of any meaning.
  void (*transpose)(const void* from, std::size_t from_stride, void* to, std::size_t to_stride);

  // to (size) = pairs of two rows; size a multiple of 16.
  void (*pair)(const std::uint16_t* lower, const std::uint16_t* upper, std::uint32_t* to, std::size_t size);

  // to (columns) = exp2(factor * (scores - m)) rounded to bfloat16, m the largest of the first `valid` scores, and 0
  // from there on; columns a multiple of 16, 1 <= valid <= columns. Returns m and the sum before rounding.
  struct Softmax {
    float largest;
    float sum;
  };
  Softmax (*softmax)(const float* scores, std::size_t valid, std::size_t columns, float factor, std::uint16_t* to);

  // A block of keys enters the softmax of `columns` queries (a multiple of 16): scores (keys, columns) become
  // exp2(factor * score - largest) rounded to bfloat16 and paired along keys, to ((keys + 1) / 2, columns), a key that
  // does not exist giving 0. Every stride is 64. largest (columns): of factor * score so far; total (columns): the sum
  // before rounding so far; sums (rows, columns): what is multiplied by the same number as total when largest grows.
  // Without `add` the block is the first: largest, total and sums hold nothing yet.
  void (*weigh)(const float* scores, std::size_t keys, float factor, std::size_t columns, bool add, float* largest,
                float* total, float* sums, std::size_t rows, std::uint32_t* to);

  // 16 keys by `columns` queries (a multiple of 16), every stride 64: probabilities p = exp2(factor * scores - lse2),
  // their slopes p * (upstream - delta), both rounded to bfloat16, and the slopes paired along keys. With `diagonal`,
  // key r and query c < r give 0.
  void (*slopes)(const float* scores, const float* upstream, const float* lse2, const float* delta, float factor,
                 std::size_t columns, bool diagonal, std::uint16_t* p, std::uint16_t* slopes, std::uint32_t* paired);

  // to (size) = factor * from, rounded to bfloat16; size a multiple of 16.
  void (*narrow)(const float* from, float factor, std::uint16_t* to, std::size_t size);

  // to (size) += from; size a multiple of 16.
  void (*add)(const float* from, float* to, std::size_t size);

  // Inner product; size a multiple of 16.
  float (*dot)(const std::uint16_t* a, const std::uint16_t* b, std::size_t size);
};

extern const AttentionLoops kPortableLoops;
const AttentionLoops& avx512_bf16_loops() noexcept;  // the portable ones where the compiler cannot build them

}  // namespace tttnn
