#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "attention_blocks.h"
#include "attention_kernels.h"
#include "build_info.h"

namespace tttnn {

using namespace attention_blocks;

namespace {

constexpr std::size_t kRows = 16;    // of a block that are worked on together
constexpr std::size_t kPairs = 64;   // of keys between two visits of an output row: values stay in the first cache
constexpr std::size_t kTasks = 16;   // the backward pass is cut into at least so many, where there are blocks enough
constexpr float kNeverSeen = 1e30f;  // log-sum-exp of a query that does not exist: its probabilities are 0

// to (64, dim) = the tokens of a block, with zeros behind the last one.
void copy_block(AttentionInput from, std::size_t head, std::size_t block, std::size_t tokens, std::size_t dim,
                std::uint16_t* to) {
  copy_rows(from, head, block * kBlock, tokens, dim, to);
}

// Everything is cut into blocks of 64 tokens; `padded` tokens with the zeros of the last one.
struct Cut {
  explicit Cut(const AttentionShape& shape)
      : blocks((shape.tokens + kBlock - 1) / kBlock),
        padded(blocks * kBlock),
        group(shape.heads / shape.kv_heads),
        splits(std::min(blocks, (kTasks + shape.heads - 1) / shape.heads)),
        tokens(shape.tokens) {}

  // Tokens of a block up to the next multiple of 16: all that must be computed.
  std::size_t size(std::size_t block) const { return std::min(kBlock, round_up(tokens - block * kBlock, kRows)); }

  // Key blocks are dealt out to the splits of the backward pass, each round backwards: early blocks have more queries.
  std::size_t split_of(std::size_t block) const {
    const std::size_t place = block % (2 * splits);
    return place < splits ? place : 2 * splits - 1 - place;
  }

  std::size_t blocks;
  std::size_t padded;
  std::size_t group;
  std::size_t splits;
  std::size_t tokens;
};

// Keys and values of a kv head as the forward pass multiplies them.
struct ForwardPacks {
  ForwardPacks(void* memory, const AttentionShape& shape, const Cut& cut) {
    Pieces pieces(memory);
    k = pieces.take<std::uint32_t>(shape.kv_heads * cut.padded * shape.dim / 2);
    v = pieces.take<std::uint32_t>(shape.kv_heads * cut.padded * shape.dim / 2);
    bytes = pieces.used();
  }
  std::uint32_t* k;  // (kv_heads, blocks, dim / 2, 64), paired along dim
  std::uint32_t* v;  // (kv_heads, padded / 2, dim), paired along tokens
  std::size_t bytes;
};

// Queries, keys, values and the gradient of the output as the backward pass multiplies them, and its partial sums.
struct BackwardPacks {
  BackwardPacks(void* memory, const AttentionShape& shape, const Cut& cut) {
    Pieces pieces(memory);
    const std::size_t size = cut.padded * shape.dim;
    k_rows = pieces.take<std::uint16_t>(shape.kv_heads * size);
    k_columns = pieces.take<std::uint16_t>(shape.kv_heads * size);
    v_rows = pieces.take<std::uint16_t>(shape.kv_heads * size);
    q_dim = pieces.take<std::uint32_t>(shape.heads * size / 2);
    q_tokens = pieces.take<std::uint32_t>(shape.heads * size / 2);
    up_dim = pieces.take<std::uint32_t>(shape.heads * size / 2);
    up_tokens = pieces.take<std::uint32_t>(shape.heads * size / 2);
    lse2 = pieces.take<float>(shape.heads * cut.padded);
    delta = pieces.take<float>(shape.heads * cut.padded);
    dk = pieces.take<float>(shape.heads * size);
    dv = pieces.take<float>(shape.heads * size);
    dq = pieces.take<float>(shape.heads * cut.splits * size);
    bytes = pieces.used();
  }
  std::uint16_t* k_rows;     // (kv_heads, padded, dim)
  std::uint16_t* k_columns;  // (kv_heads, blocks, dim, 64)
  std::uint16_t* v_rows;     // (kv_heads, padded, dim)
  std::uint32_t* q_dim;      // (heads, blocks, dim / 2, 64), paired along dim
  std::uint32_t* q_tokens;   // (heads, padded / 2, dim), paired along tokens
  std::uint32_t* up_dim;     // the output's gradient, as q_dim
  std::uint32_t* up_tokens;  // as q_tokens
  float* lse2;               // (heads, padded): log-sum-exp in base 2
  float* delta;              // (heads, padded): inner products of the output with its gradient
  float* dk;                 // (heads, padded, dim): of a query head, before scale
  float* dv;                 // (heads, padded, dim)
  float* dq;                 // (heads, splits, blocks, dim, 64): of a split, before scale
  std::size_t bytes;
};

// Sixteen queries against all keys up to the last of them.
void forward_rows(const AttentionLoops& loops, const AttentionShape& shape, const std::uint16_t* q,
                  const std::uint32_t* k, const std::uint32_t* v, std::size_t first, float* scores,
                  std::size_t score_stride, std::uint16_t* p, std::size_t p_stride, AttentionOutput out,
                  std::size_t head, float* lse) {
  const std::size_t dim = shape.dim;
  const std::size_t keys = first + kRows;
  for (std::size_t key = 0; key < keys; key += kBlock)
    loops.multiply(q, dim, k + key * dim / 2, kBlock, scores + key, score_stride, kRows, std::min(kBlock, keys - key),
                   dim / 2, false);

  const std::size_t rows = std::min(kRows, shape.tokens - first);
  const float factor = shape.scale * kLog2e;
  float sums[kRows];
  for (std::size_t r = 0; r < kRows; ++r) {
    const auto softmax = loops.softmax(scores + r * score_stride, first + r + 1, keys, factor, p + r * p_stride);
    sums[r] = softmax.sum;
    if (r < rows) lse[first + r] = softmax.largest * shape.scale + std::log(softmax.sum);
  }

  alignas(kAlign) float sum[kRows * kMaxDim];
  for (std::size_t pair = 0; pair < keys / 2; pair += kPairs)
    loops.multiply(p + 2 * pair, p_stride, v + pair * dim, dim, sum, dim, kRows, dim, std::min(kPairs, keys / 2 - pair),
                   pair > 0);
  for (std::size_t r = 0; r < rows; ++r)
    loops.narrow(sum + r * dim, 1.0f / sums[r], out.data + head * out.head + (first + r) * out.token, dim);
}

// One block of keys against one block of queries that sees it.
struct BackwardTile {
  alignas(kAlign) float scores[kRows * kBlock];
  alignas(kAlign) float upstream[kRows * kBlock];
  alignas(kAlign) std::uint16_t p[kBlock * kBlock];       // (keys, queries)
  alignas(kAlign) std::uint16_t slopes[kBlock * kBlock];  // (keys, queries)
  alignas(kAlign) std::uint32_t paired[kBlock / 2 * kBlock];

  void run(const AttentionLoops& loops, const AttentionShape& shape, const Cut& cut, const BackwardPacks& packs,
           std::size_t head, std::size_t split, std::size_t key_block, std::size_t query_block) {
    const std::size_t dim = shape.dim;
    const std::size_t kv = head / cut.group;
    const std::size_t keys = cut.size(key_block);
    const std::size_t queries = cut.size(query_block);
    const bool diagonal = key_block == query_block;

    const std::size_t kv_at = (kv * cut.padded + key_block * kBlock) * dim;
    const std::size_t q_at = (head * cut.padded + query_block * kBlock) * dim / 2;
    const std::size_t token = head * cut.padded + query_block * kBlock;
    const float factor = shape.scale * kLog2e;
    float* dk = packs.dk + (head * cut.padded + key_block * kBlock) * dim;
    float* dv = packs.dv + (head * cut.padded + key_block * kBlock) * dim;
    float* dq = packs.dq + ((head * cut.splits + split) * cut.blocks + query_block) * kBlock * dim;

    for (std::size_t key = 0; key < keys; key += kRows) {
      const std::size_t begin = diagonal ? key : 0;  // queries before these keys see none of them
      const std::size_t columns = queries - begin;
      loops.multiply(packs.k_rows + kv_at + key * dim, dim, packs.q_dim + q_at + begin, kBlock, scores + begin, kBlock,
                     kRows, columns, dim / 2, false);
      loops.multiply(packs.v_rows + kv_at + key * dim, dim, packs.up_dim + q_at + begin, kBlock, upstream + begin,
                     kBlock, kRows, columns, dim / 2, false);
      const std::size_t at = key * kBlock + begin;
      loops.slopes(scores + begin, upstream + begin, packs.lse2 + token + begin, packs.delta + token + begin, factor,
                   columns, diagonal, p + at, slopes + at, paired + key / 2 * kBlock + begin);
      for (std::size_t pair = key / 2; begin > 0 && pair < (key + kRows) / 2; ++pair)
        std::memset(paired + pair * kBlock, 0, begin * sizeof(std::uint32_t));
      // Queries are visited from the diagonal on: that visit writes, the others add.
      loops.multiply(p + at, kBlock, packs.up_tokens + q_at + begin / 2 * dim, dim, dv + key * dim, dim, kRows, dim,
                     columns / 2, !diagonal);
      loops.multiply(slopes + at, kBlock, packs.q_tokens + q_at + begin / 2 * dim, dim, dk + key * dim, dim, kRows, dim,
                     columns / 2, !diagonal);
    }
    loops.multiply(packs.k_columns + kv_at, kBlock, paired, kBlock, dq, kBlock, dim, queries, keys / 2,
                   key_block != split);  // a split's first block of keys has its number
  }
};

}  // namespace

bool attention_supported() noexcept {
#if defined(__x86_64__)
  static const bool supported = simd_level() == SimdLevel::kV4 && __builtin_cpu_supports("avx512bf16");
  return supported;
#else
  return false;
#endif
}

void Attention::Scratch::Free::operator()(void* memory) const noexcept { std::free(memory); }

Attention::Scratch Attention::take(std::size_t bytes) {
  Scratch scratch;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      scratch = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (scratch.bytes < bytes) {
    scratch.memory.reset();
    scratch.memory.reset(std::aligned_alloc(kAlign, round_up(bytes, kAlign)));
    if (!scratch.memory) throw std::bad_alloc();
    scratch.bytes = bytes;
  }
  return scratch;
}

void Attention::give(Scratch scratch) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  try {
    idle_.push_back(std::move(scratch));
  } catch (const std::bad_alloc&) {  // then the memory is freed, and a later call takes its own
  }
}

void Attention::forward(const AttentionShape& shape, AttentionInput q, AttentionInput k, AttentionInput v,
                        AttentionOutput out, float* lse, ThreadPool& pool, int max_threads) {
  require(shape);
  const AttentionLoops& loops = loops_of(kernels_);
  const Cut cut(shape);
  const std::size_t dim = shape.dim;
  Scratch scratch = take(ForwardPacks(nullptr, shape, cut).bytes);
  const ForwardPacks packs(scratch.memory.get(), shape, cut);

  pool.run(
      shape.kv_heads * cut.blocks,
      [&](std::size_t task) {
        const std::size_t kv = task / cut.blocks;
        const std::size_t block = task % cut.blocks;
        const std::size_t at = (kv * cut.padded + block * kBlock) * dim / 2;
        alignas(kAlign) std::uint16_t rows[kBlock * kMaxDim];
        copy_block(k, kv, block, shape.tokens, dim, rows);
        pair_along_dim(loops, rows, dim, packs.k + at);
        copy_block(v, kv, block, shape.tokens, dim, rows);
        pair_along_tokens(loops, rows, dim, packs.v + at);
      },
      max_threads);

  // A row of a power of two would put sixteen of them into the same places of the first cache.
  const std::size_t score_stride = cut.padded + 16;
  const std::size_t p_stride = cut.padded + 32;
  pool.run(
      shape.heads * cut.blocks,
      [&](std::size_t task) {
        const std::size_t head = task % shape.heads;
        const std::size_t block = cut.blocks - 1 - task / shape.heads;  // the longest first
        const std::size_t kv_at = head / cut.group * cut.padded * dim / 2;
        alignas(kAlign) std::uint16_t rows[kBlock * kMaxDim];
        copy_block(q, head, block, shape.tokens, dim, rows);
        const std::unique_ptr<void, Scratch::Free> memory(
            std::aligned_alloc(kAlign, kRows * (score_stride * sizeof(float) + p_stride * sizeof(std::uint16_t))));
        if (!memory) throw std::bad_alloc();
        float* scores = static_cast<float*>(memory.get());
        std::uint16_t* p = reinterpret_cast<std::uint16_t*>(scores + kRows * score_stride);
        for (std::size_t row = 0; row < cut.size(block); row += kRows)
          forward_rows(loops, shape, rows + row * dim, packs.k + kv_at, packs.v + kv_at, block * kBlock + row, scores,
                       score_stride, p, p_stride, out, head, lse + head * shape.tokens);
      },
      max_threads);
  give(std::move(scratch));
}

void Attention::backward(const AttentionShape& shape, AttentionInput q, AttentionInput k, AttentionInput v,
                         AttentionInput out, const float* lse, AttentionInput dout, AttentionOutput dq,
                         AttentionOutput dk, AttentionOutput dv, ThreadPool& pool, int max_threads) {
  require(shape);
  const AttentionLoops& loops = loops_of(kernels_);
  const Cut cut(shape);
  const std::size_t dim = shape.dim;
  Scratch scratch = take(BackwardPacks(nullptr, shape, cut).bytes);
  const BackwardPacks packs(scratch.memory.get(), shape, cut);

  const std::size_t q_tasks = shape.heads * cut.blocks;
  const std::size_t kv_tasks = shape.kv_heads * cut.blocks;
  pool.run(
      q_tasks + kv_tasks,
      [&](std::size_t task) {
        alignas(kAlign) std::uint16_t rows[kBlock * kMaxDim];
        if (task >= q_tasks) {
          const std::size_t kv = (task - q_tasks) / cut.blocks;
          const std::size_t block = (task - q_tasks) % cut.blocks;
          const std::size_t at = (kv * cut.padded + block * kBlock) * dim;
          copy_block(v, kv, block, shape.tokens, dim, packs.v_rows + at);
          copy_block(k, kv, block, shape.tokens, dim, packs.k_rows + at);
          turn(loops, packs.k_rows + at, dim, packs.k_columns + at);
          return;
        }
        const std::size_t head = task / cut.blocks;
        const std::size_t block = task % cut.blocks;
        const std::size_t at = (head * cut.padded + block * kBlock) * dim / 2;
        copy_block(q, head, block, shape.tokens, dim, rows);
        pair_along_dim(loops, rows, dim, packs.q_dim + at);
        pair_along_tokens(loops, rows, dim, packs.q_tokens + at);
        copy_block(dout, head, block, shape.tokens, dim, rows);
        pair_along_dim(loops, rows, dim, packs.up_dim + at);
        pair_along_tokens(loops, rows, dim, packs.up_tokens + at);
        for (std::size_t t = 0; t < kBlock; ++t) {
          const std::size_t token = block * kBlock + t;
          const bool exists = token < shape.tokens;
          packs.lse2[head * cut.padded + token] = exists ? lse[head * shape.tokens + token] * kLog2e : kNeverSeen;
          packs.delta[head * cut.padded + token] =
              exists ? loops.dot(rows + t * dim, out.data + head * out.head + token * out.token, dim) : 0.0f;
        }
      },
      max_threads);

  pool.run(
      shape.heads * cut.splits,
      [&](std::size_t task) {
        const std::size_t head = task / cut.splits;
        const std::size_t split = task % cut.splits;
        BackwardTile tile;
        for (std::size_t key_block = split; key_block < cut.blocks; ++key_block)
          if (cut.split_of(key_block) == split)
            for (std::size_t query_block = key_block; query_block < cut.blocks; ++query_block)
              tile.run(loops, shape, cut, packs, head, split, key_block, query_block);
      },
      max_threads);

  pool.run(
      q_tasks + kv_tasks,
      [&](std::size_t task) {
        const std::size_t owner = task < q_tasks ? task / cut.blocks : (task - q_tasks) / cut.blocks;
        const std::size_t block = task % cut.blocks;
        const std::size_t begin = block * kBlock;
        const std::size_t count = std::min(kBlock, shape.tokens - begin);
        const std::size_t size = kBlock * dim;
        alignas(kAlign) float sum[kBlock * kMaxDim];
        if (task < q_tasks) {
          float* partial = packs.dq + (owner * cut.splits * cut.blocks + block) * size;
          const std::size_t columns = cut.size(block);
          // Splits that begin behind this block hold nothing for it.
          for (std::size_t split = 1; split < cut.splits && split <= block; ++split)
            for (std::size_t c = 0; c < dim; ++c)
              loops.add(partial + split * cut.blocks * size + c * kBlock, partial + c * kBlock, columns);
          for (std::size_t t = 0; t < columns; t += 16)
            for (std::size_t c = 0; c < dim; c += 16)
              loops.transpose(partial + c * kBlock + t, kBlock, sum + t * dim + c, dim);
          for (std::size_t t = 0; t < count; ++t)
            loops.narrow(sum + t * dim, shape.scale, dq.data + owner * dq.head + (begin + t) * dq.token, dim);
          return;
        }
        const auto reduce = [&](const float* partials, float factor, AttentionOutput to) {
          const float* first = partials + (owner * cut.group * cut.padded + begin) * dim;
          std::memcpy(sum, first, count * dim * sizeof(float));
          for (std::size_t g = 1; g < cut.group; ++g) loops.add(first + g * cut.padded * dim, sum, count * dim);
          for (std::size_t t = 0; t < count; ++t)
            loops.narrow(sum + t * dim, factor, to.data + owner * to.head + (begin + t) * to.token, dim);
        };
        reduce(packs.dk, shape.scale, dk);
        reduce(packs.dv, 1.0f, dv);
      },
      max_threads);
  give(std::move(scratch));
}

}  // namespace tttnn
