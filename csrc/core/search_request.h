// What a search of an index is asked, which way it is answered, and how nodes become the ids of an answer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "scan.h"

namespace tttnn {

enum class SearchMethod {
  kAuto,   // whichever computes fewer distances
  kGraph,  // walk the graph
  kScan,   // compare with every vector: exact
};

struct SearchRequest {
  const float* queries;  // (count, dim)
  std::size_t count;
  std::size_t k;
  std::size_t ef;                         // width of the walk; at least k is used
  const std::uint8_t* allowed = nullptr;  // by id, nonzero: may be an answer; null: all may
  SearchMethod method = SearchMethod::kAuto;
  int threads = 0;  // 0: all of the shared pool
};

// What a walk costs per unit of ef, in distances of a scan, whose vectors come from memory in order: measured on text
// embeddings (benchmarks/records/retrieval.md).
constexpr std::size_t kCostPerEf = 32;

// Whether a request for `candidates` of `nodes` nodes is answered by comparing with each of them.
inline bool prefers_scan(SearchMethod method, std::size_t ef, std::size_t nodes, std::size_t candidates) {
  if (method == SearchMethod::kScan || candidates == 0) return true;
  if (method == SearchMethod::kGraph) return false;
  // With a filter a walk passes nodes / candidates nodes for each that may be an answer.
  const double walk_cost = static_cast<double>(kCostPerEf) * static_cast<double>(ef) * static_cast<double>(nodes) /
                           static_cast<double>(candidates);
  return static_cast<double>(candidates) <= walk_cost;
}

using Copies = std::vector<std::pair<std::uint32_t, std::int64_t>>;  // (node, id of an equal vector), ascending

// Writes the k ids and distances of one query, nearest first, each node's own id and then its copies, padded with -1
// and infinity. `id_of` gives the id of a node.
template <typename IdOf>
void write_answer(const NearestList& nearest, const IdOf& id_of, const Copies& copies, const SearchRequest& request,
                  std::int64_t* out_ids, float* out_distances) {
  std::size_t filled = 0;
  const auto put = [&](std::int64_t id, float distance) {
    if (filled == request.k || (request.allowed != nullptr && request.allowed[id] == 0)) return;
    out_ids[filled] = id;
    out_distances[filled] = distance;
    ++filled;
  };
  for (const Candidate& candidate : nearest) {
    if (filled == request.k) break;
    put(id_of(candidate.node), candidate.distance);
    auto copy = std::lower_bound(copies.begin(), copies.end(), std::make_pair(candidate.node, std::int64_t{0}));
    for (; copy != copies.end() && copy->first == candidate.node; ++copy) put(copy->second, candidate.distance);
  }
  std::fill(out_ids + filled, out_ids + request.k, -1);
  std::fill(out_distances + filled, out_distances + request.k, std::numeric_limits<float>::infinity());
}

}  // namespace tttnn
