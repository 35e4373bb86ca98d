// A graph index over vectors: hnswlib builds and writes it, HnswIndex searches the written file where it lies.
//
// HnswBuilder: one thread adds vectors in order; the same calls give the same file, byte for byte, on any processor
// (distance.h). HnswIndex: immutable after construction, shared by any number of threads; the caller owns the bytes
// and keeps them mapped and unchanged. Every offset, count, level and link of the file is checked in the constructor,
// so a search cannot leave the bytes whatever they hold. Throws kIndexCorrupt with `name` and what disagrees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "distance.h"
#include "search_request.h"

namespace tttnn {

struct HnswOptions {
  std::size_t M = 16;
  std::size_t ef_construction = 200;
  std::size_t seed = 0;
};

class HnswBuilder {
 public:
  HnswBuilder(std::size_t dim, Metric metric, std::size_t capacity, const HnswOptions& options);
  ~HnswBuilder();
  HnswBuilder(const HnswBuilder&) = delete;
  HnswBuilder& operator=(const HnswBuilder&) = delete;

  // Adds vectors (count, dim) under ids that grow from call to call.
  void add(const float* vectors, const std::int64_t* ids, std::size_t count);
  // Writes hnswlib's own file. Throws kIo if not all of it could be written. Does not sync.
  void save(const std::string& path) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class HnswIndex {
 public:
  // `ids`: every id of the file and of `copies` is below it. `copies`: (id, id of the equal vector that is in the
  // graph), ascending; an answer that holds the second holds the first too.
  HnswIndex(const std::byte* bytes, std::size_t size, std::size_t dim, Metric metric, std::size_t ids,
            std::vector<std::pair<std::int64_t, std::int64_t>> copies, const std::string& name);

  std::size_t nodes() const { return table_.count; }
  const VectorTable& table() const { return table_; }
  const std::vector<std::int64_t>& node_ids() const { return ids_; }
  // Bytes of tables that stand beside the mapped file while the index is open, without the scratch of searches.
  std::size_t held_bytes() const;

  // Writes out_ids and out_distances, both (count, k), nearest first, padded with -1 and infinity, and, where it is not
  // null, out_computed (count): the distances computed for each query. Returns how many queries were answered by
  // scanning.
  std::size_t search(const SearchRequest& request, std::int64_t* out_ids, float* out_distances,
                     std::int64_t* out_computed = nullptr) const;

 private:
  struct Scratch;  // visited marks and lists of one thread
  struct Reader;

  void check_links(const std::string& name) const;
  std::uint32_t descend(const float* query, Scratch& scratch) const;
  void gather_unvisited(std::uint32_t of, Scratch& scratch, std::vector<std::uint32_t>& batch) const;
  std::unique_ptr<Scratch> take_scratch() const;
  void give_scratch(std::unique_ptr<Scratch> scratch) const;

  const std::byte* level0_ = nullptr;  // records: links, vector, id
  std::size_t record_size_ = 0;
  std::size_t max_links0_ = 0;
  std::size_t max_links_ = 0;
  int top_level_ = -1;
  std::uint32_t entry_ = 0;
  VectorTable table_;
  DistanceFn distance_;
  std::vector<std::int64_t> ids_;        // by node
  std::vector<const std::byte*> upper_;  // by node: its link lists above level 0, or null
  std::vector<std::uint8_t> levels_;     // by node
  Copies copies_;

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> free_;  // guarded by mutex_

 public:
  ~HnswIndex();
};

}  // namespace tttnn
