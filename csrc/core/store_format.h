// The text store's file format: constants, records, and how each is encoded, decoded and validated. csrc/FORMAT.md
// describes it byte by byte. Nothing here does input or output; a decoder throws FormatFault, and callers add the path.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tttnn {

// Thrown by value inside the core where bytes are not what the format says; callers add the path.
struct FormatFault {
  std::string what;
  bool newer = false;  // a version from the future, not damage
};

// XXH64, the checksum of every record and page (zstd's frames carry its low half).
std::uint64_t checksum64(const void* bytes, std::size_t size, std::uint64_t seed = 0) noexcept;

constexpr std::uint16_t kFormatMajor = 1;
constexpr std::uint16_t kFormatMinor = 0;
constexpr std::uint32_t kSkippableMagic = 0x184D2A53u;
constexpr std::uint32_t kZstdMagic = 0xFD2FB528u;

constexpr std::size_t kGroupDocuments = 64;  // documents that share a group record
constexpr std::size_t kPageGroups = 10;      // groups described by one index page
constexpr std::size_t kPageDocuments = kGroupDocuments * kPageGroups;
constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kHeaderBytes = 128;
constexpr std::size_t kFooterBytes = 160;
constexpr std::size_t kCommitFixedBytes = 96;  // a commit record without its list of groups
constexpr std::size_t kGroupFixedBytes = 88;   // a group record without its lists
constexpr std::size_t kMaxDictionaryBytes = 1u << 20;
constexpr std::uint16_t kNoSource = 0xFFFF;
constexpr std::size_t kMaxSources = 0xFFFE;
constexpr std::uint64_t kMaxTextBytes = 1ull << 30;   // so that a frame's size fits 32 bits with room to spare
constexpr std::uint64_t kMaxMetaBytes = 16ull << 20;  // so that a group's metadata fits 32 bits
constexpr std::uint64_t kMaxDocuments = kPageDocuments * ((0xFFFFFFFFull - 8) / kPageBytes);

// 128 bits that depend on the documents only: texts, metadata, sources and their order.
struct ContentDigest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  bool operator==(const ContentDigest& other) const noexcept { return low == other.low && high == other.high; }
  bool operator!=(const ContentDigest& other) const noexcept { return !(*this == other); }
};

ContentDigest digest_of(std::string_view bytes) noexcept;

// The running digest: documents are added one after another; at a group's end `state` is what the group record holds.
class ContentHasher {
 public:
  ContentHasher() = default;
  explicit ContentHasher(ContentDigest state) : state_(state) {}
  void add(std::uint64_t text_size, const ContentDigest& text, std::string_view meta, std::string_view source);
  ContentDigest end_group();
  const ContentDigest& state() const noexcept { return state_; }

 private:
  ContentDigest state_;
  std::vector<std::uint64_t> words_;
};

std::string hex(const ContentDigest& digest);

struct Header {
  std::uint32_t level = 0;
  std::uint32_t dictionary_wanted = 0;  // dictionary_bytes of the writer's settings
  std::uint64_t dictionary_offset = 0;  // of the dictionary's own first byte; 0: none
  std::uint64_t dictionary_size = 0;
  std::uint64_t dictionary_checksum = 0;
  std::uint64_t data_begin = 0;
};

std::vector<unsigned char> encode_header(const Header& header);
Header decode_header(const unsigned char* bytes, std::uint64_t file_size);  // kHeaderBytes bytes

struct GroupRecord {
  std::uint64_t first_document = 0;
  std::uint64_t base = 0;   // byte of its first document's frame
  std::uint64_t ascii = 0;  // bit i: every byte of document i is below 0x80
  ContentDigest digest;     // running content digest after this group
  std::vector<std::uint32_t> frame_sizes;
  std::vector<std::uint16_t> sources;
  std::vector<std::string> new_sources;  // names seen here first, in the order of their codes
  std::uint64_t meta_raw_size = 0;       // 0: no document of the group has metadata
  std::string_view meta_frame;           // points into the decoded bytes

  std::uint64_t frames_end() const noexcept;
};

std::vector<unsigned char> encode_group(const GroupRecord& group);
// Size of the group record whose first 16 bytes are given, header of the skippable frame included.
std::size_t group_record_size(const unsigned char* bytes);
GroupRecord decode_group(const unsigned char* bytes, std::size_t size);

// Metadata of a group: lengths, then bytes.
std::string pack_metas(const std::vector<std::string>& metas);
std::vector<std::string_view> unpack_metas(std::string_view packed, std::size_t count);

struct CommitRecord {
  std::uint64_t offset = 0;    // its own place in the file
  std::uint64_t previous = 0;  // place of the commit record before it; 0: none
  std::uint64_t documents = 0;
  std::uint64_t text_bytes = 0;
  std::uint64_t meta_bytes = 0;
  std::uint64_t largest_document = 0;
  std::uint64_t ascii_documents = 0;
  ContentDigest digest;
  std::vector<std::uint64_t> groups;  // places of the group records since the commit record before it
};

std::vector<unsigned char> encode_commit(const CommitRecord& commit);
std::size_t commit_record_size(const unsigned char* bytes);
CommitRecord decode_commit(const unsigned char* bytes, std::size_t size);

struct Footer {
  std::uint64_t file_size = 0;
  std::uint64_t documents = 0;
  std::uint64_t data_begin = 0;
  std::uint64_t data_end = 0;
  std::uint64_t index_offset = 0;  // of the first page
  std::uint64_t index_pages = 0;
  std::uint64_t sources_offset = 0;  // of the skippable frame
  std::uint64_t sources_size = 0;    // of the skippable frame
  std::uint64_t text_bytes = 0;
  std::uint64_t meta_bytes = 0;
  std::uint64_t largest_document = 0;
  std::uint64_t ascii_documents = 0;
  ContentDigest store_id;
  std::uint64_t header_checksum = 0;  // ties this footer to its header
};

std::vector<unsigned char> encode_footer(const Footer& footer);
Footer decode_footer(const unsigned char* bytes, const Header& header, std::uint64_t header_checksum,
                     std::uint64_t file_size);  // kFooterBytes bytes
std::uint64_t header_checksum(const unsigned char* header_bytes) noexcept;

std::vector<unsigned char> encode_sources(const std::vector<std::string>& sources);
std::vector<std::string> decode_sources(const unsigned char* bytes, std::size_t size);

// A skippable frame of `size` bytes in all (at least 16) that means nothing: it aligns what follows.
std::vector<unsigned char> encode_padding(std::size_t size);
// The 16 bytes that stand before a payload of `size` bytes with the given tag.
std::vector<unsigned char> encode_frame_head(const char (&tag)[5], std::uint64_t size);

// One index page, used in place: a view over kPageBytes bytes.
class IndexPage {
 public:
  explicit IndexPage(const unsigned char* bytes) : bytes_(bytes) {}
  std::uint64_t base(std::size_t group) const noexcept;
  std::uint64_t ascii(std::size_t group) const noexcept;
  std::uint32_t frame_size(std::size_t slot) const noexcept;
  std::uint16_t source(std::size_t slot) const noexcept;
  // Bytes of the frames [begin, end) of one group.
  std::uint64_t frame_bytes(std::size_t begin, std::size_t end) const noexcept;
  bool intact(const ContentDigest& store_id, std::uint64_t page) const noexcept;

 private:
  const unsigned char* bytes_;
};

// Collects groups into index pages; sealed with the store id once that is known.
class IndexBuilder {
 public:
  void add(const GroupRecord& group);
  void seal(const ContentDigest& store_id);
  const std::vector<std::array<unsigned char, kPageBytes>>& pages() const noexcept { return pages_; }

 private:
  std::vector<std::array<unsigned char, kPageBytes>> pages_;
  std::uint64_t groups_ = 0;
};

bool all_ascii(const void* bytes, std::size_t size) noexcept;

}  // namespace tttnn
