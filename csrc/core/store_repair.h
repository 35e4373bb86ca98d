// Rebuilds a text store from what is intact in a damaged file, finished or not.
//
// The file is searched for group records, which describe the frames before them; where one is lost, its frames are
// walked one by one. Every text is checked by its frame's checksum. Document ids stay what they were: a text that is
// lost becomes an empty one whose metadata are kLostMeta, so that what refers to ids stays right. The new store is
// written beside the old one; the old one is not changed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "store_reader.h"
#include "store_writer.h"

namespace tttnn {

constexpr char kLostMeta[] = "{\"lost\":true}";

struct RepairReport {
  StoreSummary written;
  std::vector<std::uint64_t> lost_texts;  // ids
  std::vector<std::uint64_t> lost_metas;  // ids of texts that were kept without their metadata and source
  bool header_intact = false;
  bool tail_known = false;  // a footer or last commit record says how many documents there were
};

// Throws kStoreCorrupt where nothing can be rebuilt, and what StoreWriter throws. `progress` is called with bytes.
RepairReport repair_store(const std::string& path, const std::string& target, int threads,
                          const StoreProgress& progress);

}  // namespace tttnn
