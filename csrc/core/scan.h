// Exact nearest-vector search: every distance is computed. The oracle for recall, and the faster way on small tables.
//
// Nothing is owned: the table's bytes must outlive the call. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "distance.h"

namespace tttnn {

// Vectors at a fixed stride: a plain float matrix, or the records of an HNSW file.
struct VectorTable {
  const std::byte* base = nullptr;  // of the first vector
  std::size_t stride = 0;           // bytes from one vector to the next
  std::size_t count = 0;
  std::size_t dim = 0;
  Metric metric = Metric::kL2;

  const std::byte* at(std::size_t node) const { return base + node * stride; }
};

struct Candidate {
  float distance;
  std::uint32_t node;

  // Equal distances are ordered by node, so an answer does not depend on the order of visits.
  bool operator<(const Candidate& other) const {
    return distance < other.distance || (distance == other.distance && node < other.node);
  }
};

// The `k` nearest candidates offered, nearest first.
class NearestList {
 public:
  explicit NearestList(std::size_t k) : k_(k) { list_.reserve(k + 1); }

  bool full() const { return list_.size() == k_; }
  // Whether a candidate at this distance could enter.
  bool admits(float distance) const { return !full() || distance <= list_.back().distance; }
  // Returns the place it took, or size() if it did not enter.
  std::size_t offer(const Candidate& candidate);
  void clear() { list_.clear(); }

  std::size_t size() const { return list_.size(); }
  const Candidate& operator[](std::size_t i) const { return list_[i]; }
  const Candidate* begin() const { return list_.data(); }
  const Candidate* end() const { return list_.data() + list_.size(); }

 private:
  std::size_t k_;
  std::vector<Candidate> list_;
};

// For each of `count` queries (count, dim) the nearest k nodes; only nodes with allowed[node] != 0 where given.
std::vector<NearestList> scan(const VectorTable& table, const float* queries, std::size_t count, std::size_t k,
                              const std::uint8_t* allowed, int threads);

}  // namespace tttnn
