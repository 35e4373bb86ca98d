// A file opened for random reads: mapped, or read with pread.
//
// view() hands out bytes: in kMmap mode a pointer into the map, in kPread mode a copy in the caller's scratch buffer.
// The map dies with this object, so a view must not outlive it. Any number of threads may call view() at once.
// A map needs no descriptor, so that any number of files may be open; kPread holds one.
// Of a mapped file that another process cuts short the missing pages read as zeros: what was read is believed only
// after require_whole(), or where it passes a checksum. kPread reports a short read.
// The file is private to its opener: what is renamed over the path later is not seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "map_guard.h"

namespace tttnn {

enum class FileAccess { kMmap, kPread };

// Bytes for kPread views; grows, never shrinks below what it held.
using Scratch = std::vector<unsigned char>;

class MappedFile {
 public:
  // Throws kNotFound where there is no such file, kIo where the system refuses. `random`: reads are small and far from
  // one another, and the system need not bring what is around them.
  MappedFile(const std::string& path, FileAccess access, bool random = true);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const noexcept { return path_; }
  std::uint64_t size() const noexcept { return size_; }
  FileAccess access() const noexcept { return access_; }

  // `size` bytes at `offset`. Throws kStoreCorrupt where the range leaves the file, or the file became shorter.
  const unsigned char* view(std::uint64_t offset, std::size_t size, Scratch& scratch) const;

  // The whole map; null for kPread and for an empty file.
  const unsigned char* map() const noexcept { return map_; }

  // Whether a page of the map could not be read and was zeros; and the same as kStoreCorrupt.
  bool broken() const noexcept { return guard_ != nullptr && guard_->broken(); }
  void require_whole() const;

  // Asks the system to read the range ahead; a hint, never an error.
  void read_ahead(std::uint64_t offset, std::size_t size) const noexcept;

 private:
  std::string path_;
  FileAccess access_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  const unsigned char* map_ = nullptr;
  std::unique_ptr<MapGuard> guard_;
};

}  // namespace tttnn
