#include "scan.h"

#include <algorithm>

#include "parallel.h"

namespace tttnn {

namespace {

constexpr std::size_t kQueriesPerTask = 16;    // each vector read from memory meets this many queries
constexpr std::size_t kBlockBytes = 1u << 17;  // vectors that stay in the second-level cache meanwhile
constexpr std::size_t kSmallestRange = 2048;   // vectors; below this a thread costs more than it saves

}  // namespace

std::size_t NearestList::offer(const Candidate& candidate) {
  if (k_ == 0 || (full() && !(candidate < list_.back()))) return list_.size();
  const auto place = std::lower_bound(list_.begin(), list_.end(), candidate);
  const std::size_t at = static_cast<std::size_t>(place - list_.begin());
  if (full()) list_.pop_back();
  list_.insert(list_.begin() + static_cast<std::ptrdiff_t>(at), candidate);
  return at;
}

std::vector<NearestList> scan(const VectorTable& table, const float* queries, std::size_t count, std::size_t k,
                              const std::uint8_t* allowed, int threads) {
  ThreadPool& pool = shared_pool();
  const std::size_t wanted = static_cast<std::size_t>(threads > 0 ? threads : pool.threads());
  const std::size_t groups = (count + kQueriesPerTask - 1) / kQueriesPerTask;
  // Few queries: the table is split too, and the lists of its ranges are merged.
  std::size_t ranges = groups >= wanted || groups == 0 ? 1 : (wanted + groups - 1) / groups;
  ranges = std::max<std::size_t>(1, std::min(ranges, table.count / kSmallestRange));
  const std::size_t range_size = (table.count + ranges - 1) / ranges;
  const std::size_t block = std::max<std::size_t>(1, kBlockBytes / (table.dim * sizeof(float)));
  const DistanceFn distance = distance_function(table.metric);

  std::vector<NearestList> lists(count * ranges, NearestList(std::min(k, table.count)));
  const auto task = [&](std::size_t i) {
    const std::size_t range = i % ranges;
    const std::size_t first_query = (i / ranges) * kQueriesPerTask;
    const std::size_t last_query = std::min(count, first_query + kQueriesPerTask);
    const std::size_t range_end = std::min(table.count, (range + 1) * range_size);
    for (std::size_t begin = range * range_size; begin < range_end; begin += block) {
      const std::size_t end = std::min(range_end, begin + block);
      for (std::size_t q = first_query; q < last_query; ++q) {
        NearestList& list = lists[q * ranges + range];
        const float* query = queries + q * table.dim;
        for (std::size_t node = begin; node < end; ++node) {
          if (allowed != nullptr && allowed[node] == 0) continue;
          const float d = distance(query, table.at(node), &table.dim);
          if (list.admits(d)) list.offer({d, static_cast<std::uint32_t>(node)});
        }
      }
    }
  };
  pool.run(groups * ranges, task, threads);

  if (ranges == 1) return lists;
  std::vector<NearestList> merged(count, NearestList(std::min(k, table.count)));
  for (std::size_t q = 0; q < count; ++q)
    for (std::size_t range = 0; range < ranges; ++range)
      for (const Candidate& candidate : lists[q * ranges + range]) merged[q].offer(candidate);
  return merged;
}

}  // namespace tttnn
