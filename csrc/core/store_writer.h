// Writes a text store: append documents, then finish.
//
// Bytes go to PATH.partial, which is locked against a second writer; finish() syncs it and renames it to PATH, so PATH
// is either absent, the former store, or the whole new one. Every commit_bytes a commit record is written and synced.
// A writer that ends without finish(), by exception or by the death of the process, leaves PATH.partial.
//
// With `resume`, a PATH.partial that is there is cut back to its last commit record, and append() is called with the
// same documents again, from the first: those already committed are compared by digest and not written again. The
// finished file has the same bytes as one that was never interrupted, for any number of threads.
//
// Calls from several threads take turns; texts are compressed in threads of its own. It belongs to the process that
// opened it, not to forked children. After an error it can only be destroyed. Throws kInvalidArgument, kIo, and
// kStoreCorrupt where a partial file cannot be resumed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "store_format.h"

namespace tttnn {

struct WriterOptions {
  int level = 6;
  std::size_t dictionary_bytes = 131072;  // 0: none
  int threads = 1;
  bool resume = false;
  std::uint64_t commit_bytes = 64ull << 20;
  std::string dictionary;  // used instead of training one on the first documents; empty: train
};

struct StoreSummary {
  std::uint64_t documents = 0;
  std::uint64_t text_bytes = 0;
  std::uint64_t file_bytes = 0;
  ContentDigest store_id;
};

class StoreWriter {
 public:
  StoreWriter(const std::string& path, const WriterOptions& options);
  ~StoreWriter();
  StoreWriter(const StoreWriter&) = delete;
  StoreWriter& operator=(const StoreWriter&) = delete;

  // Takes one document; bytes are copied. `meta` is a JSON object or empty, `source` a category or empty. Returns the
  // document's id.
  std::uint64_t append(std::string_view text, std::string_view meta, std::string_view source);

  StoreSummary finish();

  // Stops without finishing: writes the texts that are being compressed, so that what they complete is committed. Does
  // nothing after finish() or an error.
  void abandon();

  std::uint64_t documents() const;           // appended so far
  std::uint64_t committed() const noexcept;  // documents that a resumed partial file already held
  bool locked() const noexcept;              // other writers are held off; false where the file system has no locks

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// The dictionary that a writer would train on these texts; empty where they are too few for one to pay.
std::string dictionary_for(const std::vector<std::string_view>& texts, std::size_t dictionary_bytes, int level);

}  // namespace tttnn
