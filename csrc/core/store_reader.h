// Reads a text store.
//
// open checks header, dictionary, table of sources and footer, and costs the same for any number of documents. An index
// page is checked when it is first needed, a text by its frame's checksum whenever it is read, metadata by their group
// record's. Damage is kStoreCorrupt and names file, document and byte.
//
// Immutable after construction: any number of threads may call any method at once. Works in a forked child.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "codec.h"
#include "mapped_file.h"
#include "store_format.h"

namespace tttnn {

// Where a text lies and how long it is.
struct TextPlace {
  std::uint64_t document = 0;
  std::uint64_t offset = 0;  // of its frame
  std::uint32_t frame_size = 0;
  bool ascii = false;           // every byte below 0x80; checked again when the text is read
  std::uint64_t text_size = 0;  // in bytes
};

// Called with documents done and in all, on the calling thread.
using StoreProgress = std::function<void(std::uint64_t, std::uint64_t)>;

class StoreReader {
 public:
  StoreReader(const std::string& path, FileAccess access);
  StoreReader(const StoreReader&) = delete;
  StoreReader& operator=(const StoreReader&) = delete;

  const std::string& path() const noexcept { return file_.path(); }
  const Header& header() const noexcept { return header_; }
  const Footer& footer() const noexcept { return footer_; }
  std::uint64_t size() const noexcept { return footer_.documents; }
  const std::vector<std::string>& sources() const noexcept { return sources_; }
  std::string dictionary() const;

  // Throws kOutOfRange for an id that is not in the store.
  TextPlace locate(std::uint64_t document) const;
  // `places` receives one entry per document, in the order given. The frames are asked for ahead of reading them, in
  // one piece where documents follow one another.
  void locate(const std::int64_t* documents, std::size_t count, TextPlace* places) const;

  // Writes place.text_size bytes to `text`.
  void read(const TextPlace& place, void* text) const;

  // Metadata, as it was appended; empty where there was none.
  std::string meta(std::uint64_t document) const;
  std::vector<std::string> metas(const std::int64_t* documents, std::size_t count) const;

  // codes receives size() entries: an index into sources(), or -1.
  void source_codes(std::int32_t* codes) const;

  // Reads all tables; with `full` also every text and its metadata, on the shared pool, and compares the store id.
  void verify(bool full, const StoreProgress& progress) const;

 private:
  struct Place {
    std::uint64_t offset;
    std::uint32_t frame_size;
    bool ascii;
  };

  [[noreturn]] void corrupt(const std::string& what) const;
  [[noreturn]] void corrupt_document(std::uint64_t document, std::uint64_t offset, const std::string& what) const;
  void require(std::uint64_t document) const;
  IndexPage page(std::uint64_t number, Scratch& scratch) const;
  Place place(std::uint64_t document) const;
  std::uint64_t group_base(const IndexPage& page, std::uint64_t group) const;
  GroupRecord group(std::uint64_t number, Scratch& scratch, std::string& packed, std::uint64_t* end = nullptr) const;
  // Sources of one index page, into the column of all documents unless that is null.
  void check_sources(std::uint64_t number, std::int32_t* codes) const;
  void verify_group(std::uint64_t number, const std::vector<ContentDigest>& states) const;
  void verify_layout(std::uint64_t begin, std::uint64_t end, std::vector<ContentDigest>& states,
                     CommitRecord& last_commit, std::uint64_t& cursor) const;
  std::uint64_t verify_commit(std::uint64_t offset, std::uint64_t documents, const ContentDigest& state,
                              CommitRecord& last_commit) const;
  void verify_filling() const;
  void measure(TextPlace& place) const;
  bool is_touched(std::uint64_t offset, std::size_t size) const;

  MappedFile file_;
  Header header_;
  Footer footer_;
  std::vector<std::string> sources_;
  std::unique_ptr<Decompressor> decompressor_;
  Decompressor plain_{std::string_view()};  // metadata frames use no dictionary
  // One byte per index page: 1 once its checksum was found right.
  std::unique_ptr<std::atomic<unsigned char>[], void (*)(void*)> page_checked_ { nullptr, nullptr };
  // One bit per page of the file: 1 once it was asked for. What was asked for before is not asked for again: the call
  // is a system call, and a warm read takes microseconds.
  std::unique_ptr<std::atomic<unsigned char>[], void (*)(void*)> touched_ { nullptr, nullptr };
};

}  // namespace tttnn
