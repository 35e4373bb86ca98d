// Searches a compact index where its three files lie (csrc/FORMAT.md): the graph is walked on compact vectors, and the
// nearest that it finds are ranked again by the full ones.
//
// Opening maps the files and reads their headers; a record is checked when a search first needs it, and every link each
// time, so that a search cannot leave the files whatever they hold. Throws kIndexCorrupt with the file's path.
// Immutable after construction, shared by any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "compact_vectors.h"
#include "record_file.h"
#include "search_request.h"

namespace tttnn {

// Nodes that are ranked again for k answers: measured on text embeddings (benchmarks/records/retrieval.md).
constexpr std::size_t ranked_again(std::size_t k) { return k + k / 4 + 16; }

class CompactIndex {
 public:
  // `folder` holds the files. `ids`: the ids of nodes and copies are 0 to ids - 1. `copies`: (id, id of the equal
  // vector that is in the graph), ascending.
  CompactIndex(const std::string& folder, CompactKind kind, std::size_t dim, Metric metric, std::size_t ids,
               const std::vector<std::pair<std::int64_t, std::int64_t>>& copies);
  ~CompactIndex();

  std::size_t nodes() const noexcept { return full_.count(0); }
  std::size_t ids() const noexcept { return nodes() + copies_.size(); }
  std::size_t dim() const noexcept { return full_.header().dim; }
  // Bytes of tables that stand beside the mapped files while the index is open, without the scratch of searches.
  std::size_t held_bytes() const noexcept;
  // Bytes of links and compact vectors, which walks read.
  std::uint64_t walked_bytes() const noexcept { return links_.size() + compact_.size(); }

  // As HnswIndex.
  std::size_t search(const SearchRequest& request, std::int64_t* out_ids, float* out_distances,
                     std::int64_t* out_computed = nullptr) const;
  // Writes the vectors of nodes, (count, dim). Throws kOutOfRange.
  void read(const std::int64_t* nodes, std::size_t count, float* out) const;
  // Checks every record of the three files and every link, and that compact vectors are those of the full ones.
  void verify(int threads = 0) const;
  // Throws where a page of a file could not be read since it was opened.
  void require_whole() const;

 private:
  struct Scratch;
  struct Reader;
  struct Above;

  std::int64_t id_of(std::uint32_t node) const;
  Above above(std::size_t level, std::size_t position) const;
  Candidate descend(Reader& reader) const;
  void rank_again(const float* query, std::size_t k, const NearestList& found, NearestList& best) const;
  void check_vectors(const std::uint8_t* allowed, int threads) const;
  std::unique_ptr<Scratch> take_scratch() const;
  void give_scratch(std::unique_ptr<Scratch> scratch) const;

  RecordFile links_, full_, compact_;
  CompactKind kind_;
  Metric metric_;
  DistanceFn distance_;
  std::vector<std::int64_t> nodes_before_;  // ascending: of each copy, how many nodes have a smaller id
  Copies copies_;

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> free_;  // guarded by mutex_
};

}  // namespace tttnn
