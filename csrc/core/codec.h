// zstd contexts, one per thread, and dictionaries shared between threads.
//
// A frame written here always carries its content size and a checksum, and no dictionary id. Equal input, level and
// dictionary give equal bytes for one version of zstd, whatever was compressed before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tttnn {

// Thrown by value inside the core where a frame cannot be decoded; callers add file, document and byte.
struct FrameFault {
  std::string what;
};

// Trains a dictionary of at most `capacity` bytes. Returns nothing where the samples are too few or too small for one.
std::string train_dictionary(const std::vector<std::string_view>& samples, std::size_t capacity, int level);

// Belongs to one thread at a time. `dictionary` may be empty and is copied.
class Compressor {
 public:
  Compressor(int level, std::string_view dictionary);
  ~Compressor();
  Compressor(Compressor&&) noexcept;
  Compressor& operator=(Compressor&&) = delete;

  // Appends one frame to `out` and returns its size.
  std::size_t append_frame(std::string_view text, std::vector<unsigned char>& out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Immutable after construction, shared freely: the decoding context belongs to the calling thread.
class Decompressor {
 public:
  explicit Decompressor(std::string_view dictionary);
  ~Decompressor();
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;

  // The content size a frame claims, refused above `limit` before anything is allocated. Throws FrameFault.
  static std::uint64_t content_size(const unsigned char* frame, std::size_t size, std::uint64_t limit);

  // Bytes of the frame that begins at `frame`, found by walking its blocks. Throws FrameFault.
  static std::size_t frame_size(const unsigned char* frame, std::size_t available);

  // Decodes one frame into exactly `text_size` bytes and checks its checksum. Throws FrameFault.
  void decode(const unsigned char* frame, std::size_t size, void* text, std::size_t text_size) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tttnn
