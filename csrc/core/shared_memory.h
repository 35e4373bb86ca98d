// Memory that several processes read and none can write: a memfd, filled once and sealed (Linux only).
//
// The descriptor is the memory's only name: who holds one may map it, in this process or another, and the memory lives
// until the last descriptor and the last mapping are gone, whoever made it. After seal() the system refuses every
// change of its bytes and size to every process. A memfd gets no huge pages on many kernels: only for sharing.
//
// Filling belongs to one thread. A sealed object is immutable and may be used from any thread.
#pragma once

#include <cstddef>

namespace tttnn {

class SharedMemory {
 public:
  // New, zero, empty of pages, not sealed. Throws Error(kIo) where the system has no memfd or refuses one.
  explicit SharedMemory(std::size_t bytes);
  // Takes a descriptor of sealed memory, made by another SharedMemory, and duplicates it: the caller keeps its own.
  // Throws Error(kInvalidArgument) when it is no sealed memory of `bytes` bytes, kIo when it cannot be duplicated.
  SharedMemory(int descriptor, std::size_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Throws Error(kInvalidArgument) beyond the end or after seal(), kIo when the system has no memory left.
  void write(std::size_t offset, const void* data, std::size_t bytes);
  // No byte changes from here on. Sealing twice does nothing. Throws Error(kIo) when the system refuses.
  void seal();

  bool sealed() const noexcept { return sealed_; }
  int descriptor() const noexcept { return descriptor_; }
  std::size_t size() const noexcept { return size_; }

 private:
  int descriptor_ = -1;  // closed on exec
  std::size_t size_ = 0;
  bool sealed_ = false;
};

}  // namespace tttnn
