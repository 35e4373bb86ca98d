#include "store_reader.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>
#include <numeric>

#include "error.h"
#include "parallel.h"

namespace tttnn {

namespace {

constexpr char kRemedy[] = ". Restore the file or rebuild it.";
// Documents whose frame headers one task reads.
constexpr std::size_t kMeasured = 128;
// Groups that verify() reads between two calls of its progress function.
constexpr std::uint64_t kVerifyWave = 64;

Scratch& scratch_of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

Scratch& index_scratch_of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

using Flags = std::unique_ptr<std::atomic<unsigned char>[], void (*)(void*)>;

// calloc: memory that is never touched costs nothing, so that opening does not depend on the number of documents.
Flags cleared_flags(std::uint64_t count) {
  static_assert(sizeof(std::atomic<unsigned char>) == 1, "calloc gives cleared atomics");
  void* flags = std::calloc(static_cast<std::size_t>(count), 1);
  if (flags == nullptr) throw std::bad_alloc();
  return {static_cast<std::atomic<unsigned char>*>(flags), std::free};
}

}  // namespace

StoreReader::StoreReader(const std::string& path, FileAccess access) : file_(path, access) {
  if (file_.size() < kHeaderBytes + kFooterBytes) {
    corrupt("is not a tttnn text store: " + std::to_string(file_.size()) + " bytes found, expected at least " +
            std::to_string(kHeaderBytes + kFooterBytes));
  }
  Scratch scratch;
  try {
    const unsigned char* bytes = file_.view(0, kHeaderBytes, scratch);
    header_ = decode_header(bytes, file_.size());
    const std::uint64_t checksum = header_checksum(bytes);
    bytes = file_.view(file_.size() - kFooterBytes, kFooterBytes, scratch);
    footer_ = decode_footer(bytes, header_, checksum, file_.size());
    bytes = file_.view(footer_.sources_offset, static_cast<std::size_t>(footer_.sources_size), scratch);
    sources_ = decode_sources(bytes, static_cast<std::size_t>(footer_.sources_size));
    decompressor_ = std::make_unique<Decompressor>(dictionary());
  } catch (const FormatFault& fault) {
    if (fault.newer) {
      throw Error(ErrorCode::kStoreVersion, file_.path() + ": " + fault.what + ". Upgrade tttnn to read it.");
    }
    corrupt(fault.what);
  } catch (const FrameFault& fault) {
    corrupt("dictionary at byte " + std::to_string(header_.dictionary_offset) + ": " + fault.what);
  }
  page_checked_ = cleared_flags(footer_.index_pages + 1);
  touched_ = cleared_flags(file_.size() / kPageBytes / 8 + 1);
}

void StoreReader::corrupt(const std::string& what) const {
  file_.require_whole();  // zeros in the place of what was cut off are not a document's fault
  throw Error(ErrorCode::kStoreCorrupt, file_.path() + ": " + what + kRemedy);
}

void StoreReader::corrupt_document(std::uint64_t document, std::uint64_t offset, const std::string& what) const {
  corrupt("document " + std::to_string(document) + " at byte " + std::to_string(offset) + " " + what);
}

void StoreReader::require(std::uint64_t document) const {
  if (document < footer_.documents) return;
  throw Error(ErrorCode::kOutOfRange, "document id must be between 0 and " + std::to_string(footer_.documents) +
                                          " (not included), got " +
                                          std::to_string(static_cast<std::int64_t>(document)));
}

std::string StoreReader::dictionary() const {
  if (header_.dictionary_size == 0) return {};
  Scratch scratch;
  const auto size = static_cast<std::size_t>(header_.dictionary_size);
  const unsigned char* bytes = file_.view(header_.dictionary_offset, size, scratch);
  if (checksum64(bytes, size) != header_.dictionary_checksum) {
    throw FormatFault{"dictionary at byte " + std::to_string(header_.dictionary_offset) + " fails its checksum"};
  }
  return std::string(reinterpret_cast<const char*>(bytes), size);
}

IndexPage StoreReader::page(std::uint64_t number, Scratch& scratch) const {
  const std::uint64_t offset = footer_.index_offset + number * kPageBytes;
  const IndexPage page(file_.view(offset, kPageBytes, scratch));
  // A page read with pread is a fresh copy each time, and is checked each time.
  std::atomic<unsigned char>& checked = page_checked_[static_cast<std::size_t>(number)];
  if (file_.access() == FileAccess::kMmap && checked.load(std::memory_order_relaxed) != 0) return page;
  if (!page.intact(footer_.store_id, number)) {
    corrupt("index page " + std::to_string(number) + " at byte " + std::to_string(offset) + " (documents " +
            std::to_string(number * kPageDocuments) + " to " +
            std::to_string(std::min(footer_.documents, (number + 1) * kPageDocuments) - 1) + ") fails its checksum");
  }
  checked.store(1, std::memory_order_relaxed);
  return page;
}

std::uint64_t StoreReader::group_base(const IndexPage& page, std::uint64_t group) const {
  const std::uint64_t base = page.base(static_cast<std::size_t>(group % kPageGroups));
  if (base < footer_.data_begin || base >= footer_.data_end) {
    corrupt("group " + std::to_string(group) + " is said to begin at byte " + std::to_string(base) +
            ", expected between " + std::to_string(footer_.data_begin) + " and " + std::to_string(footer_.data_end));
  }
  return base;
}

StoreReader::Place StoreReader::place(std::uint64_t document) const {
  const std::uint64_t group = document / kGroupDocuments;
  const std::size_t in_group = static_cast<std::size_t>(document % kGroupDocuments);
  const std::uint64_t number = group / kPageGroups;
  const IndexPage table = page(number, index_scratch_of_thread());
  const std::size_t slot = static_cast<std::size_t>(document - number * kPageDocuments);
  const std::uint64_t offset = group_base(table, group) + table.frame_bytes(slot - in_group, slot);
  const std::uint32_t size = table.frame_size(slot);
  if (offset > footer_.data_end || size > footer_.data_end - offset) {
    corrupt_document(document, offset,
                     "is said to have " + std::to_string(size) + " bytes, beyond the last text's end at byte " +
                         std::to_string(footer_.data_end));
  }
  return {offset, size, (table.ascii(static_cast<std::size_t>(group % kPageGroups)) >> in_group & 1) != 0};
}

void StoreReader::measure(TextPlace& where) const {
  // The longest header of a frame is 18 bytes.
  const std::size_t head = std::min<std::size_t>(where.frame_size, 18);
  const unsigned char* bytes = file_.view(where.offset, head, scratch_of_thread());
  try {
    where.text_size = Decompressor::content_size(bytes, head, footer_.largest_document);
  } catch (const FrameFault& fault) {
    corrupt_document(where.document, where.offset, fault.what);
  }
}

TextPlace StoreReader::locate(std::uint64_t document) const {
  require(document);
  const Place found = place(document);
  TextPlace where{document, found.offset, found.frame_size, found.ascii, 0};
  if (!is_touched(found.offset, found.frame_size)) file_.read_ahead(found.offset, found.frame_size);
  measure(where);
  return where;
}

void StoreReader::locate(const std::int64_t* documents, std::size_t count, TextPlace* places) const {
  std::uint64_t begin = 0, end = 0;  // what is to be read ahead, frames that follow one another in one piece
  for (std::size_t i = 0; i < count; ++i) {
    const auto document = static_cast<std::uint64_t>(documents[i]);
    require(document);
    const Place found = place(document);
    places[i] = {document, found.offset, found.frame_size, found.ascii, 0};
    if (is_touched(found.offset, found.frame_size)) continue;
    if (found.offset < begin || found.offset > end + kPageBytes) {
      file_.read_ahead(begin, static_cast<std::size_t>(end - begin));
      begin = found.offset;
      end = begin;
    }
    end = std::max(end, found.offset + found.frame_size);
  }
  file_.read_ahead(begin, static_cast<std::size_t>(end - begin));
  // Each frame's header is a cache miss, or a fault: in a large batch they are waited for in parallel.
  const std::size_t pieces = (count + kMeasured - 1) / kMeasured;
  const auto measure_piece = [&](std::size_t piece) {
    const std::size_t last = std::min(count, (piece + 1) * kMeasured);
    for (std::size_t i = piece * kMeasured; i < last; ++i) measure(places[i]);
  };
  if (pieces < 2) {
    for (std::size_t piece = 0; piece < pieces; ++piece) measure_piece(piece);
  } else {
    shared_pool().run(pieces, measure_piece);
  }
}

// Whether all pages of the range were read through this reader before; marks them as read. A page that the system has
// dropped since then counts as read: it comes back by a fault, only later than by reading ahead.
bool StoreReader::is_touched(std::uint64_t offset, std::size_t size) const {
  if (size == 0) return true;
  bool touched = true;
  const std::uint64_t last = (offset + size - 1) / kPageBytes;
  for (std::uint64_t page = offset / kPageBytes; page <= last; ++page) {
    std::atomic<unsigned char>& bits = touched_[static_cast<std::size_t>(page / 8)];
    const auto bit = static_cast<unsigned char>(1u << page % 8);
    if ((bits.load(std::memory_order_relaxed) & bit) != 0) continue;
    bits.fetch_or(bit, std::memory_order_relaxed);
    touched = false;
  }
  return touched;
}

void StoreReader::read(const TextPlace& where, void* text) const {
  const unsigned char* frame = file_.view(where.offset, where.frame_size, scratch_of_thread());
  try {
    decompressor_->decode(frame, where.frame_size, text, static_cast<std::size_t>(where.text_size));
  } catch (const FrameFault& fault) {
    corrupt_document(where.document, where.offset, fault.what);
  }
  if (where.ascii && !all_ascii(text, static_cast<std::size_t>(where.text_size))) {
    corrupt_document(where.document, where.offset, "has bytes above 127, but its table says it has none");
  }
}

// The group record and its metadata, unpacked into `packed`; `end` receives the first byte after the record.
GroupRecord StoreReader::group(std::uint64_t number, Scratch& scratch, std::string& packed, std::uint64_t* end) const {
  const IndexPage table = page(number / kPageGroups, index_scratch_of_thread());
  const std::uint64_t first = number * kGroupDocuments;
  const std::size_t count =
      static_cast<std::size_t>(std::min<std::uint64_t>(kGroupDocuments, footer_.documents - first));
  const std::size_t slot = static_cast<std::size_t>(number % kPageGroups) * kGroupDocuments;
  const std::uint64_t base = group_base(table, number);
  const std::uint64_t offset = base + table.frame_bytes(slot, slot + count);
  const std::string place = "group record of documents " + std::to_string(first) + " to " +
                            std::to_string(first + count - 1) + " at byte " + std::to_string(offset);
  try {
    if (offset > footer_.data_end || footer_.data_end - offset < kGroupFixedBytes) {
      throw FormatFault{"lies beyond the last text"};
    }
    const std::size_t size = group_record_size(file_.view(offset, 16, scratch));
    if (size > footer_.data_end - offset) throw FormatFault{"reaches beyond the last text"};
    GroupRecord record = decode_group(file_.view(offset, size, scratch), size);
    if (record.first_document != first || record.base != base || record.frame_sizes.size() != count) {
      throw FormatFault{"describes other documents"};
    }
    file_.require_whole();
    packed.clear();
    if (end != nullptr) *end = offset + size;
    if (record.meta_raw_size > 0) {
      const unsigned char* frame = reinterpret_cast<const unsigned char*>(record.meta_frame.data());
      if (Decompressor::content_size(frame, record.meta_frame.size(), record.meta_raw_size) != record.meta_raw_size) {
        throw FormatFault{"holds metadata of another size than it says"};
      }
      packed.resize(static_cast<std::size_t>(record.meta_raw_size));
      plain_.decode(frame, record.meta_frame.size(), &packed[0], packed.size());
    }
    return record;
  } catch (const FormatFault& fault) {
    corrupt(place + ": " + fault.what);
  } catch (const FrameFault& fault) {
    corrupt(place + ": its metadata " + fault.what);
  }
}

std::string StoreReader::meta(std::uint64_t document) const {
  const auto id = static_cast<std::int64_t>(document);
  return metas(&id, 1)[0];
}

std::vector<std::string> StoreReader::metas(const std::int64_t* documents, std::size_t count) const {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t i = 0; i < count; ++i) require(static_cast<std::uint64_t>(documents[i]));
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return documents[a] < documents[b]; });
  std::vector<std::string> result(count);
  Scratch scratch;
  std::string packed;
  std::vector<std::string_view> metas;
  std::uint64_t current = std::numeric_limits<std::uint64_t>::max();
  for (const std::size_t i : order) {
    const auto document = static_cast<std::uint64_t>(documents[i]);
    if (document / kGroupDocuments != current) {
      current = document / kGroupDocuments;
      const GroupRecord record = group(current, scratch, packed);
      try {
        metas = record.meta_raw_size > 0 ? unpack_metas(packed, record.frame_sizes.size())
                                         : std::vector<std::string_view>(record.frame_sizes.size());
      } catch (const FormatFault& fault) {
        corrupt("metadata of the documents from " + std::to_string(record.first_document) + ": " + fault.what);
      }
    }
    result[i] = std::string(metas[static_cast<std::size_t>(document % kGroupDocuments)]);
  }
  return result;
}

void StoreReader::check_sources(std::uint64_t number, std::int32_t* codes) const {
  const IndexPage table = page(number, index_scratch_of_thread());
  const std::uint64_t first = number * kPageDocuments;
  const std::size_t count =
      static_cast<std::size_t>(std::min<std::uint64_t>(kPageDocuments, footer_.documents - first));
  for (std::size_t slot = 0; slot < count; ++slot) {
    const std::uint16_t code = table.source(slot);
    if (code != kNoSource && code >= sources_.size()) {
      corrupt("document " + std::to_string(first + slot) + " has source " + std::to_string(code) + ", expected below " +
              std::to_string(sources_.size()));
    }
    if (codes != nullptr) codes[first + slot] = code == kNoSource ? -1 : static_cast<std::int32_t>(code);
  }
}

void StoreReader::source_codes(std::int32_t* codes) const {
  for (std::uint64_t number = 0; number < footer_.index_pages; ++number) check_sources(number, codes);
  file_.require_whole();
}

void StoreReader::verify_group(std::uint64_t number, const std::vector<ContentDigest>& states) const {
  Scratch scratch;
  std::string packed;
  const GroupRecord record = group(number, scratch, packed);
  ContentHasher hasher(number == 0 ? ContentDigest() : states[static_cast<std::size_t>(number) - 1]);
  std::vector<std::string_view> metas(record.frame_sizes.size());
  try {
    if (record.meta_raw_size > 0) metas = unpack_metas(packed, record.frame_sizes.size());
  } catch (const FormatFault& fault) {
    corrupt("metadata of the documents from " + std::to_string(record.first_document) + ": " + fault.what);
  }
  std::string text;
  for (std::size_t i = 0; i < record.frame_sizes.size(); ++i) {
    const std::uint64_t document = record.first_document + i;
    const TextPlace where = locate(document);
    if (where.frame_size != record.frame_sizes[i] || where.ascii != ((record.ascii >> i & 1) != 0)) {
      corrupt_document(document, where.offset, "is described differently by its index page and its group record");
    }
    text.resize(static_cast<std::size_t>(where.text_size));
    read(where, &text[0]);
    const std::uint16_t source = record.sources[i];
    hasher.add(text.size(), digest_of(text), metas[i],
               source < sources_.size() ? std::string_view(sources_[source]) : std::string_view());
  }
  if (hasher.end_group() != record.digest) {
    corrupt("documents " + std::to_string(record.first_document) + " to " +
            std::to_string(record.first_document + record.frame_sizes.size() - 1) +
            " do not match the digest in their group record");
  }
}

// A commit record must stand at `offset`; returns its end.
std::uint64_t StoreReader::verify_commit(std::uint64_t offset, std::uint64_t documents, const ContentDigest& state,
                                         CommitRecord& last_commit) const {
  Scratch scratch;
  try {
    const std::size_t left = static_cast<std::size_t>(
        std::min<std::uint64_t>(footer_.data_end - std::min(offset, footer_.data_end), 1u << 30));
    if (left < kCommitFixedBytes) throw FormatFault{"there is no commit record"};
    const std::size_t size = commit_record_size(file_.view(offset, 16, scratch));
    if (size > left) throw FormatFault{"commit record reaches beyond the documents"};
    const CommitRecord commit = decode_commit(file_.view(offset, size, scratch), size);
    if (commit.offset != offset || commit.previous != last_commit.offset || commit.documents != documents ||
        commit.digest != state) {
      throw FormatFault{"commit record does not continue what is before it"};
    }
    last_commit = commit;
    return offset + size;
  } catch (const FormatFault& fault) {
    corrupt("at byte " + std::to_string(offset) + ", after document " + std::to_string(documents) + ": " + fault.what);
  }
}

// Groups and commit records follow one another without gaps; collects the groups' digests.
void StoreReader::verify_layout(std::uint64_t begin, std::uint64_t end, std::vector<ContentDigest>& states,
                                CommitRecord& last_commit, std::uint64_t& cursor) const {
  Scratch scratch;
  std::string packed;
  for (std::uint64_t number = begin; number < end; ++number) {
    std::uint64_t next = 0;
    const GroupRecord record = group(number, scratch, packed, &next);
    const ContentDigest state = number == 0 ? ContentDigest() : states[static_cast<std::size_t>(number) - 1];
    if (record.base != cursor) cursor = verify_commit(cursor, record.first_document, state, last_commit);
    if (record.base != cursor) {
      corrupt("group of documents from " + std::to_string(record.first_document) + " begins at byte " +
              std::to_string(record.base) + ", expected " + std::to_string(cursor));
    }
    states[static_cast<std::size_t>(number)] = record.digest;
    cursor = next;
  }
}

// Bytes that no read needs, but that make the file a legal zstd stream.
void StoreReader::verify_filling() const {
  Scratch scratch;
  const auto expect = [&](std::uint64_t offset, const std::vector<unsigned char>& bytes, const char* name) {
    if (!std::equal(bytes.begin(), bytes.end(), file_.view(offset, bytes.size(), scratch))) {
      corrupt(std::string(name) + " at byte " + std::to_string(offset) + " is not what it must be");
    }
  };
  if (header_.dictionary_size > 0) {
    expect(kHeaderBytes, encode_frame_head("DICT", header_.dictionary_size), "the dictionary's frame");
  }
  const std::uint64_t padding_end = footer_.index_offset - 16;
  if (footer_.index_offset < footer_.data_end + 16 || padding_end - footer_.data_end > 2 * kPageBytes ||
      (padding_end != footer_.data_end && padding_end - footer_.data_end < 16)) {
    corrupt("index at byte " + std::to_string(footer_.index_offset) +
            " does not follow the documents, which end at byte " + std::to_string(footer_.data_end));
  }
  if (padding_end != footer_.data_end) {
    expect(footer_.data_end, encode_padding(static_cast<std::size_t>(padding_end - footer_.data_end)), "padding");
  }
  expect(padding_end, encode_frame_head("INDX", footer_.index_pages * kPageBytes), "the index's frame");
}

void StoreReader::verify(bool full, const StoreProgress& progress) const {
  for (std::uint64_t number = 0; number < footer_.index_pages; ++number) check_sources(number, nullptr);
  for (std::uint64_t document = 0; document < footer_.documents; document += kGroupDocuments) place(document);
  verify_filling();
  if (!full) {
    if (progress) progress(footer_.documents, footer_.documents);
    return;
  }
  const std::uint64_t groups = (footer_.documents + kGroupDocuments - 1) / kGroupDocuments;
  // The digest is a chain: each group's record holds the state after it, so groups are checked independently and the
  // last state must be the store id.
  std::vector<ContentDigest> states(static_cast<std::size_t>(groups));
  CommitRecord last_commit;
  std::uint64_t cursor = footer_.data_begin;
  for (std::uint64_t begin = 0; begin < groups; begin += kVerifyWave) {
    const std::uint64_t end = std::min(groups, begin + kVerifyWave);
    verify_layout(begin, end, states, last_commit, cursor);
    shared_pool().run(static_cast<std::size_t>(end - begin), [&](std::size_t i) { verify_group(begin + i, states); });
    if (progress) progress(std::min(footer_.documents, end * kGroupDocuments), footer_.documents);
  }
  const ContentDigest state = groups > 0 ? states.back() : ContentDigest();
  if (state != footer_.store_id) {
    corrupt("store id " + hex(footer_.store_id) + " found, expected " + hex(state) + " from its documents");
  }
  cursor = verify_commit(cursor, footer_.documents, state, last_commit);
  if (cursor != footer_.data_end || last_commit.text_bytes != footer_.text_bytes ||
      last_commit.meta_bytes != footer_.meta_bytes || last_commit.largest_document != footer_.largest_document ||
      last_commit.ascii_documents != footer_.ascii_documents) {
    corrupt("footer and last commit record disagree");
  }
}

}  // namespace tttnn
