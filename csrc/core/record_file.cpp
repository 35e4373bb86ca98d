#include "record_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "compact_vectors.h"
#include "error.h"
#include "io_error.h"
#include "store_format.h"

namespace tttnn {

namespace {

constexpr char kMagic[] = "TTTNNIDX";
constexpr std::uint16_t kMajor = 1, kMinor = 0;
constexpr std::size_t kChecked = kRecordHeaderBytes - kChecksumBytes;
constexpr std::uint32_t kMostLinks = 20000;  // hnswlib caps M at 10000, and level 0 has twice as many
constexpr std::uint64_t kMostRecords = 0xFFFFFFFFu;

template <typename T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
void put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

std::vector<std::byte> encoded(const RecordHeader& header) {
  std::vector<std::byte> bytes(kRecordHeaderBytes);
  std::memcpy(bytes.data(), kMagic, 8);
  put(bytes.data() + 8, kMajor);
  put(bytes.data() + 10, kMinor);
  put(bytes.data() + 12, static_cast<std::uint32_t>(header.kind));
  put(bytes.data() + 16, header.tie);
  put(bytes.data() + 24, header.file_bytes());
  put(bytes.data() + 32, header.dim);
  put(bytes.data() + 36, header.links0);
  put(bytes.data() + 40, header.links);
  put(bytes.data() + 44, header.entry);
  put(bytes.data() + 48, static_cast<std::uint32_t>(header.sections.size()));
  for (std::size_t i = 0; i < header.sections.size(); ++i) put(bytes.data() + 56 + 8 * i, header.sections[i]);
  put(bytes.data() + kChecked, checksum64(bytes.data(), kChecked));
  return bytes;
}

// What is wrong with a header's numbers, or nothing.
std::string fault_of(const RecordHeader& header, std::uint64_t promised, std::uint64_t size) {
  const bool links = header.kind == RecordKind::kLinks;
  if (header.sections.empty() || header.sections.size() > (links ? kMostSections : 1))
    return "its number of sections is " + std::to_string(header.sections.size());
  for (std::size_t i = 0; i < header.sections.size(); ++i)
    if (header.sections[i] == 0 || header.sections[i] > (i == 0 ? kMostRecords : header.sections[i - 1]))
      return "its section " + std::to_string(i) + " has " + std::to_string(header.sections[i]) + " records";
  if (links ? header.links0 < 1 || header.links0 > kMostLinks || header.links < 1 || header.links > kMostLinks ||
                  header.entry >= header.sections.back() || header.dim != 0
            : header.dim < 1 || header.dim > kMostCompactDim || header.links0 != 0 || header.links != 0)
    return "its header does not describe " + std::string(links ? "links" : "vectors");
  if (promised != header.file_bytes() || size != promised)
    return "holds " + std::to_string(size) + " bytes, but its header describes " + std::to_string(header.file_bytes());
  return {};
}

}  // namespace

const char* kind_name(RecordKind kind) noexcept {
  switch (kind) {
    case RecordKind::kLinks:
      return "links";
    case RecordKind::kFloat32:
      return "float32";
    case RecordKind::kFloat16:
      return "float16";
    case RecordKind::kInt8:
      break;
  }
  return "int8";
}

std::size_t RecordHeader::record_bytes(std::size_t section) const {
  switch (kind) {
    case RecordKind::kLinks:
      return section == 0 ? 4 + 4 * static_cast<std::size_t>(links0) : 12 + 4 * static_cast<std::size_t>(links);
    case RecordKind::kFloat32:
      return 4 * static_cast<std::size_t>(dim);
    case RecordKind::kFloat16:
      return compact_bytes(CompactKind::kFloat16, dim);
    case RecordKind::kInt8:
      break;
  }
  return compact_bytes(CompactKind::kInt8, dim);
}

std::uint64_t RecordHeader::file_bytes() const {
  std::uint64_t total = kRecordHeaderBytes;
  for (std::size_t i = 0; i < sections.size(); ++i) total += sections[i] * (record_bytes(i) + kChecksumBytes);
  return total;
}

std::uint64_t record_checksum(const std::byte* record, std::size_t size, std::uint64_t tie, std::size_t section,
                              std::uint64_t position) noexcept {
  return checksum64(record, size, tie + (static_cast<std::uint64_t>(section) << 48) + position);
}

RecordWriter::RecordWriter(const std::string& path, const RecordHeader& header)
    : path_(path), header_(header), file_(std::fopen(path.c_str(), "wbe")), tie_(header.tie) {
  if (!file_) throw io_error(path, "cannot be made", errno);
  std::setvbuf(file_.get(), nullptr, _IOFBF, 1u << 20);
  const auto bytes = encoded(header_);
  write(bytes.data(), bytes.size());
}

void RecordWriter::write(const void* bytes, std::size_t size) {
  if (std::fwrite(bytes, 1, size, file_.get()) != size) throw io_error(path_, "cannot be written", errno);
}

void RecordWriter::add(const std::byte* record) {
  while (section_ < header_.sections.size() && position_ == header_.sections[section_]) {
    ++section_;
    position_ = 0;
  }
  if (section_ == header_.sections.size())
    throw Error(ErrorCode::kInvalidArgument, path_ + ": must not hold more records than its header says");
  const std::size_t size = header_.record_bytes(section_);
  const std::uint64_t checksum = record_checksum(record, size, tie_, section_, position_);
  write(record, size);
  write(&checksum, sizeof(checksum));
  ++position_;
}

void RecordWriter::finish() {
  if (section_ + 1 != header_.sections.size() || position_ != header_.sections.back())
    throw Error(ErrorCode::kInvalidArgument, path_ + ": must hold as many records as its header says");
  if (std::fclose(file_.release()) != 0) throw io_error(path_, "cannot be written", errno);
}

RecordFile::RecordFile(const std::string& path, RecordKind kind) : file_(path, FileAccess::kMmap, true) {
  if (file_.size() < kRecordHeaderBytes)
    corrupt("holds " + std::to_string(file_.size()) + " bytes, but a header has " + std::to_string(kRecordHeaderBytes));
  const auto* bytes = reinterpret_cast<const std::byte*>(file_.map());
  if (std::memcmp(bytes, kMagic, 8) != 0) corrupt("is not a file of a compact index");
  const auto major = read<std::uint16_t>(bytes + 8);
  if (major != kMajor)
    throw Error(ErrorCode::kIndexCorrupt, path + ": version must be at most " + std::to_string(kMajor) + ", got " +
                                              std::to_string(major) + ". Install a newer tttnn.");
  if (checksum64(bytes, kChecked) != read<std::uint64_t>(bytes + kChecked)) corrupt("its header fails its checksum");
  const auto found = read<std::uint32_t>(bytes + 12);
  if (found != static_cast<std::uint32_t>(kind))
    corrupt("its kind is " + std::to_string(found) + ", expected " + std::to_string(static_cast<std::uint32_t>(kind)) +
            " (" + kind_name(kind) + ")");
  header_.kind = kind;
  header_.tie = read<std::uint64_t>(bytes + 16);
  header_.dim = read<std::uint32_t>(bytes + 32);
  header_.links0 = read<std::uint32_t>(bytes + 36);
  header_.links = read<std::uint32_t>(bytes + 40);
  header_.entry = read<std::uint32_t>(bytes + 44);
  const std::size_t sections = std::min<std::size_t>(read<std::uint32_t>(bytes + 48), kMostSections + 1);
  for (std::size_t i = 0; i < sections; ++i) header_.sections.push_back(read<std::uint64_t>(bytes + 56 + 8 * i));
  const std::string fault = fault_of(header_, read<std::uint64_t>(bytes + 24), file_.size());
  if (!fault.empty()) corrupt(fault);

  const std::byte* begin = bytes + kRecordHeaderBytes;
  std::size_t first = 0;
  for (std::size_t i = 0; i < header_.sections.size(); ++i) {
    sections_.push_back({begin, header_.record_bytes(i) + kChecksumBytes, first});
    begin += count(i) * sections_.back().stride;
    first += count(i);
  }
  checked_.reset(new std::atomic<std::uint8_t>[first / 8 + 1]());
}

void RecordFile::check(std::size_t section, std::size_t position) const {
  const std::byte* const found = at(section, position);
  const std::size_t size = stride(section) - kChecksumBytes;
  const bool good = record_checksum(found, size, header_.tie, section, position) == read<std::uint64_t>(found + size);
  require_whole();
  if (!good) corrupt(section, position, "fails its checksum");
  const std::size_t bit = sections_[section].first + position;
  checked_[bit >> 3].fetch_or(static_cast<std::uint8_t>(1u << (bit & 7)), std::memory_order_relaxed);
}

void RecordFile::read_ahead(std::size_t section, std::size_t begin, std::size_t end) const noexcept {
  const auto offset = static_cast<std::size_t>(at(section, begin) - reinterpret_cast<const std::byte*>(file_.map()));
  file_.read_ahead(offset, (end - begin) * stride(section));
}

std::size_t RecordFile::held_bytes() const noexcept {
  return (sections_.back().first + header_.sections.back()) / 8 + 1;
}

void RecordFile::require_whole() const {
  if (file_.broken()) corrupt("was cut short while it was open, or its disk cannot be read");
}

void RecordFile::corrupt(const std::string& what) const {
  throw Error(ErrorCode::kIndexCorrupt, path() + ": " + what + ". Restore the file or rebuild the datastore.");
}

void RecordFile::corrupt(std::size_t section, std::size_t position, const std::string& what) const {
  corrupt("record " + std::to_string(position) +
          (header_.kind == RecordKind::kLinks ? " of level " + std::to_string(section) : std::string()) + " " + what);
}

}  // namespace tttnn
