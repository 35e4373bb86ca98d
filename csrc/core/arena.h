// Memory of the weight arena: blocks, copies between them, and fingerprints of what they hold.
//
// A block is bytes; what lies where is the caller's knowledge. Spans are given as offsets into a block. The functions
// read and write only inside the spans given, may run on several threads of the pool, and keep no state: two calls may
// run at once if what one writes the other neither reads nor writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tttnn {

class SharedMemory;
class ThreadPool;

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;  // bytes; x86-64 and aarch64 with 4 KiB base pages

// Anonymous memory, zero, aligned to kHugePage, huge pages asked for. Pages come on first touch. The destructor unmaps
// it: whoever holds an address inside must keep the block. Throws Error(kIo) when the system has no address space.
class Block {
 public:
  explicit Block(std::size_t bytes);
  // Shows sealed memory, aligned to a page, and may outlive it. Pages are those that every other process reads, until
  // one is written here: then this block alone gets a copy of it, and nobody else sees the change.
  // Throws Error(kInvalidArgument) when it is not sealed.
  explicit Block(const SharedMemory& shared);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;    // as asked for
  std::size_t mapped_ = 0;  // rounded up to whole huge pages where it is anonymous
};

struct Span {
  std::size_t offset;
  std::size_t bytes;
};

// Copies each span from `source` to the same offset of `destination`. Large spans bypass the cache: what is put back
// is not read again soon.
void copy_spans(std::byte* destination, const std::byte* source, const std::vector<Span>& spans, ThreadPool& pool,
                int max_threads);

// The same between addresses of the CUDA device `device`, in order on `stream` (a cudaStream_t), without waiting. Spans
// that touch are copied as one. Throws Error(kDevice) when the device refuses or without CUDA.
void copy_spans_cuda(void* destination, const void* source, const std::vector<Span>& spans, int device, void* stream);

// One 64-bit fingerprint per span, the same for any number of threads. A change inside a single aligned 8-byte word
// always changes it; other changes are missed with probability 2^-64. Not a defence against an adversary.
std::vector<std::uint64_t> fingerprint_spans(const std::byte* source, const std::vector<Span>& spans, ThreadPool& pool,
                                             int max_threads);

// Asks the C library to keep memory that is freed and to hand it out again, large pieces too: gradients and logits come
// and go at every step, and pages given back to the system return one page fault each. Changes the whole process and
// cannot be undone; memory then shrinks only at exit. False where the C library has no such settings (only glibc has).
bool keep_freed_memory() noexcept;

}  // namespace tttnn
