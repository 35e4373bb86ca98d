#include "store_format.h"

#include <cstring>

namespace tttnn {

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "the format is little-endian, and so are the supported systems");

template <class T>
T load(const unsigned char* bytes) noexcept {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

template <class T>
void store(unsigned char* bytes, T value) noexcept {
  std::memcpy(bytes, &value, sizeof(T));
}

template <class T>
void put(std::vector<unsigned char>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  store(out.data() + at, value);
}

void put_bytes(std::vector<unsigned char>& out, std::string_view bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

constexpr char kHeaderTag[] = "TTTNNSTO";
constexpr char kFooterTag[] = "TTTNNEND";

// Every record is one skippable frame; its last eight bytes are the checksum of all bytes before them.
void close_record(std::vector<unsigned char>& out) {
  store<std::uint32_t>(out.data() + 4, static_cast<std::uint32_t>(out.size()));
  put<std::uint64_t>(out, checksum64(out.data(), out.size()));
}

void check_record(const unsigned char* bytes, std::size_t size, const char* name) {
  if (size < 16 || load<std::uint64_t>(bytes + size - 8) != checksum64(bytes, size - 8)) {
    throw FormatFault{std::string(name) + " fails its checksum"};
  }
}

std::size_t record_size(const unsigned char* bytes, const char* tag, const char* name) {
  if (load<std::uint32_t>(bytes) != kSkippableMagic || std::memcmp(bytes + 8, tag, 4) != 0) {
    throw FormatFault{std::string("there is no ") + name};
  }
  return std::size_t{8} + load<std::uint32_t>(bytes + 4);
}

std::vector<unsigned char> open_record(const char* tag, std::uint32_t word) {
  std::vector<unsigned char> out;
  put(out, kSkippableMagic);
  put<std::uint32_t>(out, 0);
  put_bytes(out, std::string_view(tag, 4));
  put(out, word);
  return out;
}

constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87ull;
constexpr std::uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Full;
constexpr std::uint64_t kPrime3 = 0x165667B19E3779F9ull;
constexpr std::uint64_t kPrime4 = 0x85EBCA77C2B2AE63ull;
constexpr std::uint64_t kPrime5 = 0x27D4EB2F165667C5ull;

constexpr std::uint64_t rotate(std::uint64_t x, int by) noexcept { return (x << by) | (x >> (64 - by)); }
constexpr std::uint64_t round64(std::uint64_t acc, std::uint64_t input) noexcept {
  return rotate(acc + input * kPrime2, 31) * kPrime1;
}
constexpr std::uint64_t merge64(std::uint64_t acc, std::uint64_t value) noexcept {
  return (acc ^ round64(0, value)) * kPrime1 + kPrime4;
}

}  // namespace

std::uint64_t checksum64(const void* bytes, std::size_t size, std::uint64_t seed) noexcept {
  const unsigned char* p = static_cast<const unsigned char*>(bytes);
  std::size_t left = size;
  std::uint64_t hash;
  if (left >= 32) {
    std::uint64_t a = seed + kPrime1 + kPrime2, b = seed + kPrime2, c = seed, d = seed - kPrime1;
    for (; left >= 32; left -= 32, p += 32) {
      a = round64(a, load<std::uint64_t>(p));
      b = round64(b, load<std::uint64_t>(p + 8));
      c = round64(c, load<std::uint64_t>(p + 16));
      d = round64(d, load<std::uint64_t>(p + 24));
    }
    hash = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
    hash = merge64(merge64(merge64(merge64(hash, a), b), c), d);
  } else {
    hash = seed + kPrime5;
  }
  hash += size;
  for (; left >= 8; left -= 8, p += 8) {
    hash = rotate(hash ^ round64(0, load<std::uint64_t>(p)), 27) * kPrime1 + kPrime4;
  }
  if (left >= 4) {
    hash = rotate(hash ^ (load<std::uint32_t>(p) * kPrime1), 23) * kPrime2 + kPrime3;
    p += 4;
    left -= 4;
  }
  for (; left > 0; --left, ++p) hash = rotate(hash ^ (*p * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

ContentDigest digest_of(std::string_view bytes) noexcept {
  return {checksum64(bytes.data(), bytes.size(), 0), checksum64(bytes.data(), bytes.size(), kPrime3)};
}

void ContentHasher::add(std::uint64_t text_size, const ContentDigest& text, std::string_view meta,
                        std::string_view source) {
  const ContentDigest of_meta = digest_of(meta);
  const ContentDigest of_source = digest_of(source);
  for (const std::uint64_t word : {text_size, text.low, text.high, std::uint64_t{meta.size()}, of_meta.low,
                                   of_meta.high, of_source.low, of_source.high}) {
    words_.push_back(word);
  }
}

ContentDigest ContentHasher::end_group() {
  words_.push_back(state_.low);
  words_.push_back(state_.high);
  const std::size_t size = words_.size() * sizeof(std::uint64_t);
  state_ = {checksum64(words_.data(), size, state_.low), checksum64(words_.data(), size, state_.high ^ kPrime5)};
  words_.clear();
  return state_;
}

std::string hex(const ContentDigest& digest) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint64_t word : {digest.low, digest.high}) {
    for (int shift = 60; shift >= 0; shift -= 4) text += digits[(word >> shift) & 15];
  }
  return text;
}

std::vector<unsigned char> encode_header(const Header& header) {
  std::vector<unsigned char> out;
  put(out, kSkippableMagic);
  put<std::uint32_t>(out, kHeaderBytes - 8);
  put_bytes(out, std::string_view(kHeaderTag, 8));
  put(out, kFormatMajor);
  put(out, kFormatMinor);
  put<std::uint32_t>(out, 0);  // flags a reader must know
  put<std::uint32_t>(out, 0);  // flags a reader may ignore
  put(out, header.level);
  put(out, header.dictionary_offset);
  put(out, header.dictionary_size);
  put(out, header.dictionary_checksum);
  put(out, header.data_begin);
  put<std::uint32_t>(out, kGroupDocuments);
  put<std::uint32_t>(out, kPageDocuments);
  put(out, header.dictionary_wanted);
  out.resize(kHeaderBytes - 8, 0);
  put<std::uint64_t>(out, checksum64(out.data(), out.size()));
  return out;
}

std::uint64_t header_checksum(const unsigned char* header_bytes) noexcept {
  return load<std::uint64_t>(header_bytes + kHeaderBytes - 8);
}

Header decode_header(const unsigned char* bytes, std::uint64_t file_size) {
  if (load<std::uint32_t>(bytes) != kSkippableMagic || std::memcmp(bytes + 8, kHeaderTag, 8) != 0) {
    throw FormatFault{"is not a tttnn text store: the first 16 bytes are not its mark"};
  }
  // The version and its mark stand where every version has them; the checksum's place belongs to version 1.
  const std::uint16_t major = load<std::uint16_t>(bytes + 16);
  const bool sound = load<std::uint32_t>(bytes + 4) == kHeaderBytes - 8 &&
                     header_checksum(bytes) == checksum64(bytes, kHeaderBytes - 8);
  if (major > kFormatMajor && (sound || load<std::uint32_t>(bytes + 4) != kHeaderBytes - 8)) {
    throw FormatFault{
        "format version " + std::to_string(major) + " found, expected at most " + std::to_string(kFormatMajor), true};
  }
  if (!sound) throw FormatFault{"header at byte 0 fails its checksum"};
  if (major != kFormatMajor) throw FormatFault{"format version " + std::to_string(major) + " does not exist"};
  const std::uint32_t flags = load<std::uint32_t>(bytes + 20);
  if (flags != 0) {
    throw FormatFault{"format flags " + std::to_string(flags) + " found that this version does not know", true};
  }
  Header header;
  header.level = load<std::uint32_t>(bytes + 28);
  header.dictionary_offset = load<std::uint64_t>(bytes + 32);
  header.dictionary_size = load<std::uint64_t>(bytes + 40);
  header.dictionary_checksum = load<std::uint64_t>(bytes + 48);
  header.data_begin = load<std::uint64_t>(bytes + 56);
  header.dictionary_wanted = load<std::uint32_t>(bytes + 72);
  const bool with_dictionary = header.dictionary_offset != 0;
  if (load<std::uint32_t>(bytes + 64) != kGroupDocuments || load<std::uint32_t>(bytes + 68) != kPageDocuments) {
    throw FormatFault{"header at byte 0 gives group or page sizes that version 1 does not have"};
  }
  if (header.data_begin > file_size || header.data_begin < kHeaderBytes ||
      header.dictionary_size > kMaxDictionaryBytes || with_dictionary != (header.dictionary_size != 0) ||
      (with_dictionary && (header.dictionary_offset != kHeaderBytes + 16 ||
                           header.data_begin != header.dictionary_offset + header.dictionary_size)) ||
      (!with_dictionary && header.data_begin != kHeaderBytes)) {
    throw FormatFault{"header at byte 0 gives places that do not fit the file's " + std::to_string(file_size) +
                      " bytes"};
  }
  return header;
}

std::uint64_t GroupRecord::frames_end() const noexcept {
  std::uint64_t end = base;
  for (const std::uint32_t size : frame_sizes) end += size;
  return end;
}

std::vector<unsigned char> encode_group(const GroupRecord& group) {
  std::vector<unsigned char> names;
  for (const std::string& name : group.new_sources) {
    put<std::uint32_t>(names, static_cast<std::uint32_t>(name.size()));
    put_bytes(names, name);
  }
  std::vector<unsigned char> out = open_record("GRUP", static_cast<std::uint32_t>(group.frame_sizes.size()));
  put(out, group.first_document);
  put(out, group.base);
  put(out, group.ascii);
  put(out, group.digest.low);
  put(out, group.digest.high);
  put<std::uint32_t>(out, static_cast<std::uint32_t>(group.meta_raw_size));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(group.meta_frame.size()));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(group.new_sources.size()));
  put<std::uint32_t>(out, static_cast<std::uint32_t>(names.size()));
  put<std::uint64_t>(out, 0);
  for (const std::uint32_t size : group.frame_sizes) put(out, size);
  for (const std::uint16_t source : group.sources) put(out, source);
  out.insert(out.end(), names.begin(), names.end());
  put_bytes(out, group.meta_frame);
  close_record(out);
  return out;
}

std::size_t group_record_size(const unsigned char* bytes) { return record_size(bytes, "GRUP", "group record"); }

GroupRecord decode_group(const unsigned char* bytes, std::size_t size) {
  if (size < kGroupFixedBytes || group_record_size(bytes) != size) throw FormatFault{"group record has a wrong size"};
  check_record(bytes, size, "group record");
  GroupRecord group;
  const std::size_t count = load<std::uint32_t>(bytes + 12);
  group.first_document = load<std::uint64_t>(bytes + 16);
  group.base = load<std::uint64_t>(bytes + 24);
  group.ascii = load<std::uint64_t>(bytes + 32);
  group.digest = {load<std::uint64_t>(bytes + 40), load<std::uint64_t>(bytes + 48)};
  group.meta_raw_size = load<std::uint32_t>(bytes + 56);
  const std::uint64_t meta_size = load<std::uint32_t>(bytes + 60);
  const std::size_t new_sources = load<std::uint32_t>(bytes + 64);
  const std::uint64_t names_size = load<std::uint32_t>(bytes + 68);
  if (count == 0 || count > kGroupDocuments || new_sources > count ||
      kGroupFixedBytes + count * 6 + names_size + meta_size != size) {
    throw FormatFault{"group record has counts that do not fit its size"};
  }
  const unsigned char* at = bytes + kGroupFixedBytes - 8;
  for (std::size_t i = 0; i < count; ++i, at += 4) group.frame_sizes.push_back(load<std::uint32_t>(at));
  for (std::size_t i = 0; i < count; ++i, at += 2) group.sources.push_back(load<std::uint16_t>(at));
  const unsigned char* const names_end = at + names_size;
  for (std::size_t i = 0; i < new_sources; ++i) {
    if (names_end - at < 4 || static_cast<std::uint64_t>(names_end - at - 4) < load<std::uint32_t>(at)) {
      throw FormatFault{"group record has source names that do not fit its size"};
    }
    const std::uint32_t length = load<std::uint32_t>(at);
    group.new_sources.emplace_back(reinterpret_cast<const char*>(at + 4), length);
    at += 4 + length;
  }
  if (at != names_end) throw FormatFault{"group record has source names that do not fit its size"};
  group.meta_frame = std::string_view(reinterpret_cast<const char*>(at), meta_size);
  return group;
}

std::string pack_metas(const std::vector<std::string>& metas) {
  std::string packed(metas.size() * 4, '\0');
  for (std::size_t i = 0; i < metas.size(); ++i) {
    store<std::uint32_t>(reinterpret_cast<unsigned char*>(&packed[i * 4]), static_cast<std::uint32_t>(metas[i].size()));
  }
  for (const std::string& meta : metas) packed += meta;
  return packed;
}

std::vector<std::string_view> unpack_metas(std::string_view packed, std::size_t count) {
  if (packed.size() < count * 4) throw FormatFault{"metadata are shorter than their table"};
  std::vector<std::string_view> metas;
  std::size_t at = count * 4;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t size = load<std::uint32_t>(reinterpret_cast<const unsigned char*>(packed.data()) + i * 4);
    if (size > packed.size() - at) throw FormatFault{"metadata do not fit their table"};
    metas.push_back(packed.substr(at, size));
    at += size;
  }
  if (at != packed.size()) throw FormatFault{"metadata do not fit their table"};
  return metas;
}

std::vector<unsigned char> encode_commit(const CommitRecord& commit) {
  std::vector<unsigned char> out = open_record("CMIT", static_cast<std::uint32_t>(commit.groups.size()));
  for (const std::uint64_t word :
       {commit.offset, commit.previous, commit.documents, commit.text_bytes, commit.meta_bytes, commit.largest_document,
        commit.ascii_documents, commit.digest.low, commit.digest.high}) {
    put(out, word);
  }
  for (const std::uint64_t group : commit.groups) put(out, group);
  close_record(out);
  return out;
}

std::size_t commit_record_size(const unsigned char* bytes) { return record_size(bytes, "CMIT", "commit record"); }

CommitRecord decode_commit(const unsigned char* bytes, std::size_t size) {
  if (size < kCommitFixedBytes || commit_record_size(bytes) != size)
    throw FormatFault{"commit record has a wrong size"};
  check_record(bytes, size, "commit record");
  const std::size_t groups = load<std::uint32_t>(bytes + 12);
  if (kCommitFixedBytes + std::uint64_t{groups} * 8 != size) throw FormatFault{"commit record has a wrong size"};
  CommitRecord commit;
  std::uint64_t* const words[] = {&commit.offset,          &commit.previous,   &commit.documents,
                                  &commit.text_bytes,      &commit.meta_bytes, &commit.largest_document,
                                  &commit.ascii_documents, &commit.digest.low, &commit.digest.high};
  const unsigned char* at = bytes + 16;
  for (std::uint64_t* word : words) {
    *word = load<std::uint64_t>(at);
    at += 8;
  }
  for (std::size_t i = 0; i < groups; ++i, at += 8) commit.groups.push_back(load<std::uint64_t>(at));
  return commit;
}

std::vector<unsigned char> encode_footer(const Footer& footer) {
  std::vector<unsigned char> out;
  put(out, kSkippableMagic);
  put<std::uint32_t>(out, kFooterBytes - 8);
  put_bytes(out, std::string_view(kFooterTag, 8));
  put(out, kFormatMajor);
  put(out, kFormatMinor);
  put<std::uint32_t>(out, 0);
  for (const std::uint64_t word :
       {footer.file_size, footer.documents, footer.data_begin, footer.data_end, footer.index_offset, footer.index_pages,
        footer.sources_offset, footer.sources_size, footer.text_bytes, footer.meta_bytes, footer.largest_document,
        footer.ascii_documents, footer.store_id.low, footer.store_id.high, footer.header_checksum, std::uint64_t{0}}) {
    put(out, word);
  }
  put<std::uint64_t>(out, checksum64(out.data(), out.size()));
  return out;
}

Footer decode_footer(const unsigned char* bytes, const Header& header, std::uint64_t expected_header_checksum,
                     std::uint64_t file_size) {
  const std::string place = "footer at byte " + std::to_string(file_size - kFooterBytes);
  if (load<std::uint32_t>(bytes) != kSkippableMagic || std::memcmp(bytes + 8, kFooterTag, 8) != 0) {
    throw FormatFault{place + " is missing: the file is cut short or was never finished"};
  }
  if (load<std::uint32_t>(bytes + 4) != kFooterBytes - 8 ||
      load<std::uint64_t>(bytes + kFooterBytes - 8) != checksum64(bytes, kFooterBytes - 8)) {
    throw FormatFault{place + " fails its checksum"};
  }
  if (load<std::uint16_t>(bytes + 16) != kFormatMajor)
    throw FormatFault{place + " has another version than the header"};
  Footer footer;
  std::uint64_t* const words[] = {&footer.file_size,      &footer.documents,        &footer.data_begin,
                                  &footer.data_end,       &footer.index_offset,     &footer.index_pages,
                                  &footer.sources_offset, &footer.sources_size,     &footer.text_bytes,
                                  &footer.meta_bytes,     &footer.largest_document, &footer.ascii_documents,
                                  &footer.store_id.low,   &footer.store_id.high,    &footer.header_checksum};
  const unsigned char* at = bytes + 24;
  for (std::uint64_t* word : words) {
    *word = load<std::uint64_t>(at);
    at += 8;
  }
  if (footer.file_size != file_size) {
    throw FormatFault{place + " speaks of a file of " + std::to_string(footer.file_size) + " bytes, found " +
                      std::to_string(file_size)};
  }
  if (footer.header_checksum != expected_header_checksum || footer.data_begin != header.data_begin) {
    throw FormatFault{place + " belongs to another header"};
  }
  const std::uint64_t pages = (footer.documents + kPageDocuments - 1) / kPageDocuments;
  const std::uint64_t end = file_size - kFooterBytes;
  const bool fits = footer.documents <= kMaxDocuments && footer.index_pages == pages &&
                    footer.data_end >= footer.data_begin && footer.data_end <= end &&
                    footer.index_offset >= footer.data_end && footer.index_offset <= end &&
                    footer.index_pages * kPageBytes <= end - footer.index_offset &&
                    footer.sources_offset == footer.index_offset + footer.index_pages * kPageBytes &&
                    footer.sources_size == end - footer.sources_offset && footer.largest_document <= kMaxTextBytes &&
                    footer.ascii_documents <= footer.documents;
  if (!fits) throw FormatFault{place + " gives places that do not fit the file"};
  return footer;
}

std::vector<unsigned char> encode_sources(const std::vector<std::string>& sources) {
  std::vector<unsigned char> out = open_record("SRCS", static_cast<std::uint32_t>(sources.size()));
  for (const std::string& name : sources) {
    put<std::uint32_t>(out, static_cast<std::uint32_t>(name.size()));
    put_bytes(out, name);
  }
  close_record(out);
  return out;
}

std::vector<std::string> decode_sources(const unsigned char* bytes, std::size_t size) {
  if (size < 24 || record_size(bytes, "SRCS", "table of sources") != size) {
    throw FormatFault{"table of sources has a wrong size"};
  }
  check_record(bytes, size, "table of sources");
  std::vector<std::string> sources;
  const std::size_t count = load<std::uint32_t>(bytes + 12);
  std::size_t at = 16;
  const std::size_t end = size - 8;
  for (std::size_t i = 0; i < count; ++i) {
    if (end - at < 4 || load<std::uint32_t>(bytes + at) > end - at - 4) {
      throw FormatFault{"table of sources has names that do not fit it"};
    }
    const std::uint32_t length = load<std::uint32_t>(bytes + at);
    sources.emplace_back(reinterpret_cast<const char*>(bytes + at + 4), length);
    at += 4 + std::size_t{length};
  }
  if (at != end) throw FormatFault{"table of sources has names that do not fit it"};
  return sources;
}

std::vector<unsigned char> encode_frame_head(const char (&tag)[5], std::uint64_t size) {
  std::vector<unsigned char> out = open_record(tag, 0);
  store<std::uint32_t>(out.data() + 4, static_cast<std::uint32_t>(size + 8));
  return out;
}

std::vector<unsigned char> encode_padding(std::size_t size) {
  std::vector<unsigned char> out = encode_frame_head("PADD", size - 16);
  out.resize(size, 0);
  return out;
}

namespace {

// Where a page's columns begin.
constexpr std::size_t kBases = 0;
constexpr std::size_t kAscii = kBases + kPageGroups * 8;
constexpr std::size_t kSizes = kAscii + kPageGroups * 8;
constexpr std::size_t kSources = kSizes + kPageDocuments * 4;
constexpr std::size_t kPageChecksum = kPageBytes - 8;
static_assert(kSources + kPageDocuments * 2 <= kPageChecksum, "an index page holds its columns");

std::uint64_t page_checksum(const unsigned char* bytes, const ContentDigest& store_id, std::uint64_t page) noexcept {
  return checksum64(bytes, kPageChecksum, store_id.low + page);
}

}  // namespace

std::uint64_t IndexPage::base(std::size_t group) const noexcept {
  return load<std::uint64_t>(bytes_ + kBases + group * 8);
}
std::uint64_t IndexPage::ascii(std::size_t group) const noexcept {
  return load<std::uint64_t>(bytes_ + kAscii + group * 8);
}
std::uint32_t IndexPage::frame_size(std::size_t slot) const noexcept {
  return load<std::uint32_t>(bytes_ + kSizes + slot * 4);
}
std::uint16_t IndexPage::source(std::size_t slot) const noexcept {
  return load<std::uint16_t>(bytes_ + kSources + slot * 2);
}
std::uint64_t IndexPage::frame_bytes(std::size_t begin, std::size_t end) const noexcept {
  std::uint64_t bytes = 0;
  for (std::size_t slot = begin; slot < end; ++slot) bytes += frame_size(slot);
  return bytes;
}
bool IndexPage::intact(const ContentDigest& store_id, std::uint64_t page) const noexcept {
  return load<std::uint64_t>(bytes_ + kPageChecksum) == page_checksum(bytes_, store_id, page);
}

void IndexBuilder::add(const GroupRecord& group) {
  const std::size_t in_page = groups_ % kPageGroups;
  if (in_page == 0) {
    pages_.emplace_back();
    pages_.back().fill(0);
  }
  unsigned char* page = pages_.back().data();
  store(page + kBases + in_page * 8, group.base);
  store(page + kAscii + in_page * 8, group.ascii);
  for (std::size_t i = 0; i < group.frame_sizes.size(); ++i) {
    const std::size_t slot = in_page * kGroupDocuments + i;
    store(page + kSizes + slot * 4, group.frame_sizes[i]);
    store(page + kSources + slot * 2, group.sources[i]);
  }
  ++groups_;
}

void IndexBuilder::seal(const ContentDigest& store_id) {
  for (std::size_t i = 0; i < pages_.size(); ++i) {
    store(pages_[i].data() + kPageChecksum, page_checksum(pages_[i].data(), store_id, i));
  }
}

bool all_ascii(const void* bytes, std::size_t size) noexcept {
  const unsigned char* p = static_cast<const unsigned char*>(bytes);
  std::uint64_t seen = 0;
  for (; size >= 64; size -= 64, p += 64) {
    std::uint64_t words[8];
    std::memcpy(words, p, 64);
    for (const std::uint64_t word : words) seen |= word;
  }
  for (; size > 0; --size, ++p) seen |= *p;
  return (seen & 0x8080808080808080ull) == 0;
}

}  // namespace tttnn
