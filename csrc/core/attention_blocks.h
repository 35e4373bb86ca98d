// Blocks of 64 tokens in the layouts that the loops of attention_kernels.h multiply: what the causal and the packed
// attention share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "attention.h"
#include "attention_kernels.h"
#include "error.h"

namespace tttnn::attention_blocks {

constexpr std::size_t kBlock = 64;  // queries, or keys, of a block: four registers
constexpr std::size_t kMaxDim = 256;
constexpr std::size_t kAlign = 64;  // bytes of a cache line
constexpr float kLog2e = 1.44269504f;

inline const AttentionLoops& loops_of(AttentionKernels kernels) {
  return kernels == AttentionKernels::kPortable ? kPortableLoops : avx512_bf16_loops();
}

inline std::size_t round_up(std::size_t size, std::size_t to) { return (size + to - 1) / to * to; }

inline void require(const AttentionShape& shape) {
  const auto refuse = [](const std::string& rule, std::size_t value) {
    throw Error(ErrorCode::kInvalidArgument, rule + ", got " + std::to_string(value));
  };
  if (shape.heads < 1) refuse("heads must be at least 1", shape.heads);
  if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0)
    refuse("kv_heads must divide heads (" + std::to_string(shape.heads) + ")", shape.kv_heads);
  if (shape.tokens < 1) refuse("tokens must be at least 1", shape.tokens);
  if (shape.dim < 32 || shape.dim > kMaxDim || shape.dim % 16 != 0)
    refuse("dim must be a multiple of 16 from 32 to 256", shape.dim);
  if (!(shape.scale > 0.0f) || !std::isfinite(shape.scale))
    throw Error(ErrorCode::kInvalidArgument, "scale must be finite and above 0, got " + std::to_string(shape.scale));
}

// Hands out aligned pieces of one block; without a block it only counts.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <typename T>
  T* take(std::size_t count) {
    T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(count * sizeof(T), kAlign);
    return piece;
  }
  std::size_t used() const noexcept { return used_; }

 private:
  char* memory_;
  std::size_t used_ = 0;
};

// to (64, dim) = tokens [begin, end) of a head, at most 64 of them, with zeros behind the last one.
inline void copy_rows(AttentionInput from, std::size_t head, std::size_t begin, std::size_t end, std::size_t dim,
                      std::uint16_t* to) {
  const std::size_t count = std::min(kBlock, end - begin);
  for (std::size_t t = 0; t < count; ++t)
    std::memcpy(to + t * dim, from.data + head * from.head + (begin + t) * from.token, dim * sizeof(std::uint16_t));
  std::memset(to + count * dim, 0, (kBlock - count) * dim * sizeof(std::uint16_t));
}

// to (dim / 2, 64) words = rows (64, dim) paired along dim.
inline void pair_along_dim(const AttentionLoops& loops, const std::uint16_t* rows, std::size_t dim, std::uint32_t* to) {
  for (std::size_t t = 0; t < kBlock; t += 16)
    for (std::size_t word = 0; word < dim / 2; word += 16) {
      // A dim of 48 has 24 words a row: the last sixteen overlap those before.
      const std::size_t first = std::min(word, dim / 2 - 16);
      loops.transpose(rows + t * dim + 2 * first, dim / 2, to + first * kBlock + t, kBlock);
    }
}

// to (32, dim) words = rows (64, dim) paired along tokens.
inline void pair_along_tokens(const AttentionLoops& loops, const std::uint16_t* rows, std::size_t dim,
                              std::uint32_t* to) {
  for (std::size_t t = 0; t < kBlock; t += 2) loops.pair(rows + t * dim, rows + (t + 1) * dim, to + t / 2 * dim, dim);
}

// to (dim, 64) = the transpose of rows (64, dim).
inline void turn(const AttentionLoops& loops, const std::uint16_t* rows, std::size_t dim, std::uint16_t* to) {
  // Words of two tokens, transposed: for each of dim, the tokens in order.
  alignas(kAlign) std::uint32_t words[kBlock / 2 * kMaxDim];
  pair_along_tokens(loops, rows, dim, words);
  for (std::size_t pair = 0; pair < kBlock / 2; pair += 16)
    for (std::size_t c = 0; c < dim; c += 16)
      loops.transpose(words + pair * dim + c, dim, to + c * kBlock + 2 * pair, kBlock / 2);
}

}  // namespace tttnn::attention_blocks
