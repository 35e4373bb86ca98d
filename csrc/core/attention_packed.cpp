// Attention without a mask inside each of many sequences: Attention::forward_packed.
//
// A register holds sixteen queries, so the softmax of a query runs down the rows of a block of keys: its largest score
// and its sum need no exchange between lanes, and sums of values are multiplied as the largest score grows.
#include <algorithm>
#include <cstring>

#include "attention.h"
#include "attention_blocks.h"
#include "attention_kernels.h"

namespace tttnn {

using namespace attention_blocks;

namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kKeyRows = 4;  // of keys, as multiply wants them

// Keys and values of one head of one sequence.
struct Pack {
  Pack(void* memory, std::size_t tokens, std::size_t dim) {
    Pieces pieces(memory);
    const std::size_t size = round_up(tokens, kBlock) * dim;
    keys = pieces.take<std::uint16_t>(size);
    values = pieces.take<std::uint16_t>(size);
    bytes = pieces.used();
  }
  std::uint16_t* keys;    // (blocks, 64, dim)
  std::uint16_t* values;  // (blocks, dim, 64)
  std::size_t bytes;
};

// 64 queries against all keys of their sequence.
struct Tile {
  alignas(kAlign) std::uint16_t rows[kBlock * kMaxDim];
  alignas(kAlign) std::uint32_t q[kMaxDim / 2 * kBlock];  // paired along dim
  alignas(kAlign) float scores[kBlock * kBlock];          // (keys, queries)
  alignas(kAlign) std::uint32_t p[kBlock / 2 * kBlock];   // paired along keys
  alignas(kAlign) float sums[kMaxDim * kBlock];           // (dim, queries) of values
  alignas(kAlign) float transposed[kBlock * kMaxDim];     // (queries, dim)
  alignas(kAlign) float largest[kBlock];
  alignas(kAlign) float total[kBlock];

  // The sequence lies in tokens [begin, end), the queries in [first, end).
  void run(const AttentionLoops& loops, const AttentionShape& shape, const Pack& pack, AttentionInput query,
           AttentionOutput out, std::size_t head, std::size_t begin, std::size_t end, std::size_t first) {
    const std::size_t dim = shape.dim;
    const std::size_t queries = std::min(kBlock, end - first);
    const std::size_t columns = round_up(queries, kLanes);
    const float factor = shape.scale * kLog2e;
    copy_rows(query, head, first, end, dim, rows);
    pair_along_dim(loops, rows, dim, q);
    for (std::size_t key = begin; key < end; key += kBlock) {
      const std::size_t keys = std::min(kBlock, end - key);
      const std::size_t at = (key - begin) * dim;
      loops.multiply(pack.keys + at, dim, q, kBlock, scores, kBlock, round_up(keys, kKeyRows), columns, dim / 2, false);
      loops.weigh(scores, keys, factor, columns, key > begin, largest, total, sums, dim, p);
      loops.multiply(pack.values + at, kBlock, p, kBlock, sums, kBlock, dim, columns, (keys + 1) / 2, key > begin);
    }
    for (std::size_t t = 0; t < columns; t += kLanes)
      for (std::size_t c = 0; c < dim; c += kLanes)
        loops.transpose(sums + c * kBlock + t, kBlock, transposed + t * dim + c, dim);
    for (std::size_t t = 0; t < queries; ++t)
      loops.narrow(transposed + t * dim, 1.0f / total[t], out.data + head * out.head + (first + t) * out.token, dim);
  }
};

void require(const AttentionShape& shape, const std::vector<std::int64_t>& offsets) {
  attention_blocks::require(shape);
  for (std::size_t i = 0; i < offsets.size(); ++i)
    if (offsets[i] < (i == 0 ? 0 : offsets[i - 1]) || offsets[i] > static_cast<std::int64_t>(shape.tokens))
      throw Error(ErrorCode::kInvalidArgument, "offsets must not fall and be between 0 and " +
                                                   std::to_string(shape.tokens) + " (tokens), got " +
                                                   std::to_string(offsets[i]) + " at " + std::to_string(i));
}

}  // namespace

void Attention::forward_packed(const AttentionShape& shape, const std::vector<std::int64_t>& offsets, AttentionInput q,
                               AttentionInput k, AttentionInput v, AttentionOutput out, ThreadPool& pool,
                               int max_threads) {
  require(shape, offsets);
  if (offsets.size() < 2) return;
  const AttentionLoops& loops = loops_of(kernels_);
  const std::size_t group = shape.heads / shape.kv_heads;
  pool.run((offsets.size() - 1) * shape.kv_heads,
           [&](std::size_t task) {
             const auto begin = static_cast<std::size_t>(offsets[task / shape.kv_heads]);
             const auto end = static_cast<std::size_t>(offsets[task / shape.kv_heads + 1]);
             const std::size_t kv = task % shape.kv_heads;
             Scratch scratch = take(Pack(nullptr, end - begin, shape.dim).bytes);
             const Pack pack(scratch.memory.get(), end - begin, shape.dim);
             Tile tile;
             for (std::size_t key = begin; key < end; key += kBlock) {
               const std::size_t at = (key - begin) * shape.dim;
               copy_rows(v, kv, key, end, shape.dim, tile.rows);
               turn(loops, tile.rows, shape.dim, pack.values + at);
               copy_rows(k, kv, key, end, shape.dim, pack.keys + at);
             }
             for (std::size_t head = kv * group; head < (kv + 1) * group; ++head)
               for (std::size_t first = begin; first < end; first += kBlock)
                 tile.run(loops, shape, pack, q, out, head, begin, end, first);
             give(std::move(scratch));
           },
           max_threads);
}

}  // namespace tttnn
