#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "error.h"
#include "io_error.h"

namespace tttnn {

MappedFile::MappedFile(const std::string& path, FileAccess access, bool random) : path_(path), access_(access) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) throw io_error(path, "cannot be opened", errno);
  struct stat status;
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw Error(ErrorCode::kIo, path + ": is not a regular file");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  if (access_ == FileAccess::kMmap && size_ > 0) {
    void* map = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
    if (map == MAP_FAILED) {
      const int reason = errno;
      ::close(descriptor_);
      throw io_error(path, "cannot be mapped", reason);
    }
    map_ = static_cast<const unsigned char*>(map);
    guard_ = std::make_unique<MapGuard>(map, size_);
    // Reads are by document: the system's own read-around would fetch 128 KiB for a text of 2.
    if (random) ::madvise(map, size_, MADV_RANDOM);
  }
  if (access_ == FileAccess::kMmap) {
    ::close(descriptor_);
    descriptor_ = -1;
  }
}

MappedFile::~MappedFile() {
  guard_.reset();
  if (map_ != nullptr) ::munmap(const_cast<unsigned char*>(map_), size_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

void MappedFile::require_whole() const {
  if (!broken()) return;
  throw Error(ErrorCode::kStoreCorrupt,
              path_ + ": was cut short while it was open, or its disk cannot be read; it had " + std::to_string(size_) +
                  " bytes when it was opened. Restore the file or rebuild it.");
}

const unsigned char* MappedFile::view(std::uint64_t offset, std::size_t size, Scratch& scratch) const {
  if (offset > size_ || size > size_ - offset) {
    throw Error(ErrorCode::kStoreCorrupt, path_ + ": a table points at " + std::to_string(size) + " bytes at byte " +
                                              std::to_string(offset) + ", beyond the file's " + std::to_string(size_) +
                                              ". Restore the file or rebuild it.");
  }
  if (map_ != nullptr) {
    require_whole();
    return map_ + offset;
  }
  if (scratch.size() < size) scratch.resize(size);
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = ::pread(descriptor_, scratch.data() + done, size - done, static_cast<off_t>(offset + done));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw io_error(path_, "cannot be read", errno);
    }
    if (got == 0) {
      throw Error(ErrorCode::kStoreCorrupt, path_ + ": ends before byte " + std::to_string(offset + size) +
                                                "; it had " + std::to_string(size_) +
                                                " bytes when it was opened. Restore the file or rebuild it.");
    }
    done += static_cast<std::size_t>(got);
  }
  return scratch.data();
}

void MappedFile::read_ahead(std::uint64_t offset, std::size_t size) const noexcept {
  if (offset >= size_ || size == 0) return;
  if (size > size_ - offset) size = static_cast<std::size_t>(size_ - offset);
  if (map_ != nullptr) {
    const std::uint64_t begin = offset & ~std::uint64_t{4095};
    ::madvise(const_cast<unsigned char*>(map_) + begin, size + static_cast<std::size_t>(offset - begin), MADV_WILLNEED);
  } else {
    ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_WILLNEED);
  }
}

}  // namespace tttnn
