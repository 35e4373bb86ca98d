#include "arena.h"

#include <sys/mman.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>

#include "error.h"
#include "parallel.h"
#include "shared_memory.h"
#include "stream.h"

namespace tttnn {

namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;  // bytes of a task: large enough to hide its start

struct Piece {
  std::size_t span;
  std::size_t offset;  // into the block
  std::size_t bytes;
};

std::vector<Piece> cut(const std::vector<Span>& spans) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < spans.size(); ++i)
    for (std::size_t done = 0; done < spans[i].bytes; done += kPiece)
      pieces.push_back({i, spans[i].offset + done, std::min(kPiece, spans[i].bytes - done)});
  return pieces;
}

constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15u;  // 2^64 over the golden ratio

// For a given state a bijection of the word, and for a given word a bijection of the state: no single change is lost.
inline std::uint64_t absorb(std::uint64_t state, std::uint64_t word) {
  state = (state ^ word) * kOdd;
  return state ^ (state >> 32);
}

std::uint64_t fingerprint(const std::byte* data, std::size_t bytes) {
  constexpr std::size_t kLanes = 8;  // independent chains hide the latency of the multiplication
  std::uint64_t lanes[kLanes] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::uint64_t words[kLanes];
  std::size_t i = 0;
  for (; i + sizeof(words) <= bytes; i += sizeof(words)) {
    std::memcpy(words, data + i, sizeof(words));
    for (std::size_t l = 0; l < kLanes; ++l) lanes[l] = absorb(lanes[l], words[l]);
  }
  std::memset(words, 0, sizeof(words));
  if (i < bytes) std::memcpy(words, data + i, bytes - i);
  for (std::size_t l = 0; l < kLanes; ++l) lanes[l] = absorb(lanes[l], words[l]);
  std::uint64_t all = bytes;
  for (std::uint64_t lane : lanes) all = absorb(all, lane);
  return all;
}

}  // namespace

Block::Block(std::size_t bytes) : size_(bytes) {
  mapped_ = std::max<std::size_t>(1, (bytes + kHugePage - 1) / kHugePage) * kHugePage;
  // The system aligns to its base page only: map one huge page more and give back what lies outside.
  const std::size_t reserve = mapped_ + kHugePage;
  void* raw = mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED)
    throw Error(ErrorCode::kIo,
                "weight block of " + std::to_string(bytes) + " bytes cannot be mapped: " + std::strerror(errno));
  auto* begin = static_cast<std::byte*>(raw);
  const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
  data_ = begin + before;
  if (before > 0) munmap(begin, before);
  const std::size_t after = kHugePage - before;
  if (after > 0) munmap(data_ + mapped_, after);
#if defined(MADV_HUGEPAGE)
  madvise(data_, mapped_, MADV_HUGEPAGE);  // a wish: without huge pages the block works all the same
#endif
}

Block::Block(const SharedMemory& shared) : size_(shared.size()) {
  if (!shared.sealed())
    throw Error(ErrorCode::kInvalidArgument, "shared memory must be sealed before it is mapped, but it can change");
  // Private and writable, though nobody writes it: a stray write then costs a page instead of the process, and the
  // arena finds it as it finds one in memory of its own. No swap is set aside for copies that are never made.
  mapped_ = std::max<std::size_t>(1, size_);
  void* raw = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, shared.descriptor(), 0);
  if (raw == MAP_FAILED)
    throw Error(ErrorCode::kIo,
                "shared weights of " + std::to_string(size_) + " bytes cannot be mapped: " + std::strerror(errno));
  data_ = static_cast<std::byte*>(raw);
}

Block::~Block() { munmap(data_, mapped_); }

void copy_spans(std::byte* destination, const std::byte* source, const std::vector<Span>& spans, ThreadPool& pool,
                int max_threads) {
  const std::vector<Piece> pieces = cut(spans);
  const Stream stream = stream_copy();
  pool.run(
      pieces.size(),
      [&](std::size_t i) {
        const Piece& piece = pieces[i];
        if (piece.bytes < kPiece / 16) {
          std::memcpy(destination + piece.offset, source + piece.offset, piece.bytes);
        } else {
          stream(destination + piece.offset, source + piece.offset, piece.bytes);
          stream_fence();
        }
      },
      max_threads);
}

#if !defined(TTTNN_HAS_CUDA)
void copy_spans_cuda(void*, const void*, const std::vector<Span>&, int, void*) {
  throw Error(ErrorCode::kDevice, "device must be cpu in this build, got cuda. Install a build with CUDA.");
}
#endif

std::vector<std::uint64_t> fingerprint_spans(const std::byte* source, const std::vector<Span>& spans, ThreadPool& pool,
                                             int max_threads) {
  const std::vector<Piece> pieces = cut(spans);
  std::vector<std::uint64_t> parts(pieces.size());
  pool.run(
      pieces.size(), [&](std::size_t i) { parts[i] = fingerprint(source + pieces[i].offset, pieces[i].bytes); },
      max_threads);
  std::vector<std::uint64_t> results(spans.size(), 0);
  for (std::size_t i = 0; i < pieces.size(); ++i) results[pieces[i].span] = absorb(results[pieces[i].span], parts[i]);
  return results;
}

bool keep_freed_memory() noexcept {
#if defined(__GLIBC__)
  // No piece gets a mapping of its own, and the top of the heap is never given back.
  return mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max()) == 1;
#else
  return false;
#endif
}

}  // namespace tttnn
