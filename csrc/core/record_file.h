// A file of the compact index: a header, then records of one size, section after section, each with its checksum
// (csrc/FORMAT.md).
//
// RecordFile maps a file and checks a record when it is first needed; opening reads the header alone. Immutable but for
// the bits that say what was checked; shared by any number of threads. Throws kIndexCorrupt with the path, the section
// and the record. RecordWriter belongs to one thread and does not sync.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "mapped_file.h"

namespace tttnn {

enum class RecordKind : std::uint32_t { kLinks = 0, kFloat32 = 1, kFloat16 = 2, kInt8 = 3 };

const char* kind_name(RecordKind kind) noexcept;

constexpr std::size_t kRecordHeaderBytes = 4096;
constexpr std::size_t kMostSections = 64;
constexpr std::size_t kChecksumBytes = 8;

struct RecordHeader {
  RecordKind kind = RecordKind::kLinks;
  std::uint64_t tie = 0;
  std::uint32_t dim = 0;     // of links: 0
  std::uint32_t links0 = 0;  // most links on level 0; of vectors: 0
  std::uint32_t links = 0;   // most links on another level; of vectors: 0
  std::uint32_t entry = 0;   // position on the top level; of vectors: 0
  std::vector<std::uint64_t> sections;

  std::size_t record_bytes(std::size_t section) const;  // without the checksum
  std::uint64_t file_bytes() const;
};

std::uint64_t record_checksum(const std::byte* record, std::size_t size, std::uint64_t tie, std::size_t section,
                              std::uint64_t position) noexcept;

class RecordWriter {
 public:
  // Throws kIo where the file cannot be made.
  RecordWriter(const std::string& path, const RecordHeader& header);
  RecordWriter(const RecordWriter&) = delete;
  RecordWriter& operator=(const RecordWriter&) = delete;

  // Of the section that is being written.
  std::size_t record_bytes() const { return header_.record_bytes(std::min(section_, header_.sections.size() - 1)); }
  // The next record of the file: record_bytes() of its section.
  void add(const std::byte* record);
  // Throws kIo where not all could be written.
  void finish();

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void write(const void* bytes, std::size_t size);

  std::string path_;
  RecordHeader header_;
  std::unique_ptr<std::FILE, Close> file_;
  std::size_t section_ = 0;
  std::uint64_t position_ = 0;
  std::uint64_t tie_;
};

class RecordFile {
 public:
  // Throws kNotFound, kIo, or kIndexCorrupt where the header or the file's size is wrong, or the kind another.
  RecordFile(const std::string& path, RecordKind kind);

  const RecordHeader& header() const noexcept { return header_; }
  const std::string& path() const noexcept { return file_.path(); }
  std::uint64_t size() const noexcept { return file_.size(); }
  std::size_t count(std::size_t section) const noexcept { return static_cast<std::size_t>(header_.sections[section]); }
  // Bytes from one record to the next.
  std::size_t stride(std::size_t section) const noexcept { return sections_[section].stride; }
  // Where a record lies, checked or not.
  const std::byte* at(std::size_t section, std::size_t position) const noexcept {
    return sections_[section].begin + position * sections_[section].stride;
  }
  // A record, its checksum checked; `position` < count(section).
  const std::byte* record(std::size_t section, std::size_t position) const {
    const std::byte* const found = at(section, position);
    if (!checked(section, position)) check(section, position);
    return found;
  }
  // Asks the system to read a record that will be needed soon, where it was not needed before.
  void expect(std::size_t section, std::size_t position) const noexcept {
    if (!checked(section, position)) read_ahead(section, position, position + 1);
  }
  // Asks the system to read records ahead.
  void read_ahead(std::size_t section, std::size_t begin, std::size_t end) const noexcept;
  std::size_t held_bytes() const noexcept;
  // Throws where a page could not be read since the file was opened.
  void require_whole() const;
  [[noreturn]] void corrupt(const std::string& what) const;
  [[noreturn]] void corrupt(std::size_t section, std::size_t position, const std::string& what) const;

 private:
  struct Section {
    const std::byte* begin;
    std::size_t stride;
    std::size_t first;  // record of the file
  };
  bool checked(std::size_t section, std::size_t position) const noexcept {
    const std::size_t bit = sections_[section].first + position;
    return (checked_[bit >> 3].load(std::memory_order_relaxed) >> (bit & 7) & 1) != 0;
  }
  void check(std::size_t section, std::size_t position) const;

  MappedFile file_;
  RecordHeader header_;
  std::vector<Section> sections_;
  std::unique_ptr<std::atomic<std::uint8_t>[]> checked_;  // a bit for each record
};

}  // namespace tttnn
