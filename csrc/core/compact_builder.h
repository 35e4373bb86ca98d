// Builds the graph of a compact index from vectors that come in order, and holds them in their compact form alone.
//
// One thread; the same calls give the same files, byte for byte, on any processor. Throws kEmbedding where a vector
// cannot be made compact, kIo where a file cannot be written whole; syncs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "compact_vectors.h"
#include "hnsw.h"
#include "record_file.h"

namespace tttnn {

class CompactBuilder {
 public:
  CompactBuilder(std::size_t dim, CompactKind kind, Metric metric, std::size_t capacity, const HnswOptions& options);
  ~CompactBuilder();
  CompactBuilder(const CompactBuilder&) = delete;
  CompactBuilder& operator=(const CompactBuilder&) = delete;

  // Adds vectors (count, dim); `ids` (count) name them in messages.
  void add(const float* vectors, const std::int64_t* ids, std::size_t count);
  // Writes graph.links and the file of compact vectors, under these names.
  void save(const std::string& links, const std::string& vectors) const;
  // Begins the file of full vectors, which are given once more, in the same order (RecordWriter::add).
  std::unique_ptr<RecordWriter> full_writer(const std::string& path) const;

  std::size_t dim() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tttnn
