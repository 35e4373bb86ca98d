#include "store_repair.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string_view>

#include "codec.h"
#include "error.h"
#include "mapped_file.h"

namespace tttnn {

namespace {

constexpr std::size_t kWindow = 4u << 20;

struct Found {
  std::uint64_t offset;  // of the group record
  std::uint64_t end;
};

// A repair in hand: what was learnt of the damaged file.
class Repair {
 public:
  Repair(const std::string& path, const StoreProgress& progress)
      : file_(path, FileAccess::kPread), progress_(progress) {}

  RepairReport run(const std::string& target, int threads) {
    read_header();
    find_records();
    if (groups_.empty() && documents_ == 0) {
      throw Error(ErrorCode::kStoreCorrupt, file_.path() + ": has no group record that is intact, nothing to repair");
    }
    WriterOptions options;
    options.level = static_cast<int>(header_.level);
    options.dictionary_bytes = header_.dictionary_wanted;
    options.threads = threads;
    options.dictionary = dictionary_;
    writer_ = std::make_unique<StoreWriter>(target, options);
    std::uint64_t cursor = header_.data_begin;
    for (const auto& [first, found] : groups_) {
      const GroupRecord group = load(found);
      fill_gap(cursor, group.base, first, true);
      keep_group(group);
      cursor = found.end;
      if (progress_) progress_(cursor, file_.size());
    }
    fill_gap(cursor, data_end_ != 0 ? data_end_ : file_.size(), std::max(documents_, writer_->documents()),
             report_.tail_known);
    report_.written = writer_->finish();
    return std::move(report_);
  }

 private:
  void read_header() {
    if (file_.size() < kHeaderBytes) {
      throw Error(ErrorCode::kStoreCorrupt, file_.path() + ": has only " + std::to_string(file_.size()) + " bytes");
    }
    Scratch scratch;
    try {
      header_ = decode_header(file_.view(0, kHeaderBytes, scratch), file_.size());
      report_.header_intact = true;
    } catch (const FormatFault& fault) {
      if (fault.newer) throw Error(ErrorCode::kStoreVersion, file_.path() + ": " + fault.what);
      // The dictionary's own frame says how long it is; the level is not known, and matters for new frames only.
      header_ = Header();
      header_.level = 6;
      header_.data_begin = kHeaderBytes;
      header_.dictionary_wanted = 0;
      const std::vector<unsigned char> mark = encode_frame_head("DICT", 0);
      const unsigned char* head =
          file_.view(kHeaderBytes, std::min<std::size_t>(16, file_.size() - kHeaderBytes), scratch);
      std::uint32_t size = 0;
      if (file_.size() >= kHeaderBytes + 16) std::memcpy(&size, head + 4, 4);
      if (size >= 8 && size <= kMaxDictionaryBytes + 8 && std::memcmp(head + 8, mark.data() + 8, 4) == 0 &&
          kHeaderBytes + 8 + size <= file_.size()) {
        header_.dictionary_offset = kHeaderBytes + 16;
        header_.dictionary_size = size - 8;
        header_.data_begin = kHeaderBytes + 8 + size;
        header_.dictionary_wanted = size - 8;
      }
    }
    if (header_.dictionary_size > 0) {
      // A damaged dictionary is used all the same: texts that do not need the damaged part pass their checksums.
      const auto size = static_cast<std::size_t>(header_.dictionary_size);
      dictionary_.assign(reinterpret_cast<const char*>(file_.view(header_.dictionary_offset, size, scratch)), size);
    }
    try {
      decompressor_ = std::make_unique<Decompressor>(dictionary_);
    } catch (const FrameFault& fault) {
      throw Error(ErrorCode::kStoreCorrupt, file_.path() + ": dictionary: " + fault.what + ", nothing can be repaired");
    }
  }

  // All group records with a right checksum, by their first document; the greatest commit record or footer.
  void find_records() {
    Scratch window, record;
    for (std::uint64_t begin = header_.data_begin; begin < file_.size(); begin += kWindow) {
      // 16 bytes beyond the window, so that a mark across two windows is seen in the first one.
      const std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(kWindow + 16, file_.size() - begin));
      const std::string_view bytes(reinterpret_cast<const char*>(file_.view(begin, size, window)), size);
      constexpr std::string_view magic("S*M\x18", 4);  // kSkippableMagic as it stands in the file
      for (std::size_t at = bytes.find(magic); at != std::string_view::npos; at = bytes.find(magic, at + 1)) {
        if (at >= kWindow || bytes.size() - at < 16) break;
        try {
          look_at(begin + at, bytes.substr(at + 8, 8), record);
        } catch (const FormatFault&) {
          continue;
        }
      }
      if (progress_) progress_(std::min(begin + kWindow, file_.size()) / 2, file_.size());
    }
  }

  void look_at(std::uint64_t offset, std::string_view tag, Scratch& scratch) {
    if (tag.substr(0, 4) == "GRUP") {
      const std::size_t size = record_bytes(offset, group_record_size(file_.view(offset, 16, scratch)));
      const GroupRecord group = decode_group(file_.view(offset, size, scratch), size);
      if (group.base >= header_.data_begin && group.frames_end() == offset && group.first_document < kMaxDocuments) {
        groups_.emplace(group.first_document, Found{offset, offset + size});
      }
    } else if (tag.substr(0, 4) == "CMIT") {
      const std::size_t size = record_bytes(offset, commit_record_size(file_.view(offset, 16, scratch)));
      const CommitRecord commit = decode_commit(file_.view(offset, size, scratch), size);
      if (commit.offset == offset && commit.documents >= documents_) {
        documents_ = commit.documents;
        data_end_ = offset;
        report_.tail_known = true;
      }
    }
  }

  std::size_t record_bytes(std::uint64_t offset, std::size_t size) const {
    if (size > file_.size() - offset) throw FormatFault{"record reaches beyond the file"};
    return size;
  }

  GroupRecord load(const Found& found) {
    const auto size = static_cast<std::size_t>(found.end - found.offset);
    return decode_group(file_.view(found.offset, size, group_scratch_), size);
  }

  // Frames between two places whose group records are lost. Ids up to `next` are known to exist where `counted`.
  void fill_gap(std::uint64_t begin, std::uint64_t end, std::uint64_t next, bool counted) {
    std::vector<std::pair<std::uint64_t, std::size_t>> frames;
    Scratch scratch;
    std::uint64_t at = begin;
    try {
      while (at < end && end - at >= 8 && (!counted || writer_->documents() + frames.size() < next)) {
        const std::size_t available = static_cast<std::size_t>(std::min<std::uint64_t>(end - at, kMaxTextBytes));
        const std::size_t size = walk(at, available, scratch);
        std::uint32_t magic;
        std::memcpy(&magic, file_.view(at, 4, scratch), 4);
        if (magic == kZstdMagic) frames.emplace_back(at, size);
        at += size;
      }
    } catch (const FrameFault&) {
      // What lies behind cannot be told apart; the documents until `next` are lost.
    }
    for (const auto& [offset, size] : frames) {
      std::string text;
      const bool intact = read(offset, size, text);
      keep(intact ? &text : nullptr, {}, {}, true);
    }
    if (!counted) return;
    while (writer_->documents() < next) keep(nullptr, {}, {}, true);
  }

  // Size of a frame, read in growing pieces: most are short, and what follows may be anything.
  std::size_t walk(std::uint64_t at, std::size_t available, Scratch& scratch) {
    for (std::size_t piece = std::min<std::size_t>(available, 1u << 16);; piece = std::min(available, piece * 8)) {
      try {
        return Decompressor::frame_size(file_.view(at, piece, scratch), piece);
      } catch (const FrameFault&) {
        if (piece == available) throw;
      }
    }
  }

  bool read(std::uint64_t offset, std::size_t size, std::string& text) {
    try {
      const unsigned char* frame = file_.view(offset, size, frame_scratch_);
      const std::uint64_t limit = std::min<std::uint64_t>(kMaxTextBytes, (size / 3 + 1) * (std::uint64_t{128} << 10));
      text.resize(static_cast<std::size_t>(Decompressor::content_size(frame, size, limit)));
      decompressor_->decode(frame, size, &text[0], text.size());
      return true;
    } catch (const FrameFault&) {
      return false;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kStoreCorrupt) throw;
      return false;
    }
  }

  void keep_group(const GroupRecord& group) {
    const std::size_t count = group.frame_sizes.size();
    std::string packed;
    std::vector<std::string_view> metas(count);
    bool metas_lost = false;
    if (group.meta_raw_size > 0) {
      const auto* frame = reinterpret_cast<const unsigned char*>(group.meta_frame.data());
      try {
        packed.resize(
            static_cast<std::size_t>(Decompressor::content_size(frame, group.meta_frame.size(), group.meta_raw_size)));
        plain_.decode(frame, group.meta_frame.size(), &packed[0], packed.size());
        metas = unpack_metas(packed, count);
      } catch (const FrameFault&) {
        metas_lost = true;
      } catch (const FormatFault&) {
        metas_lost = true;
      }
    }
    learn_sources(group);
    std::uint64_t offset = group.base;
    for (std::size_t i = 0; i < count; ++i) {
      std::string text;
      const bool intact = read(offset, group.frame_sizes[i], text);
      const auto name = sources_.find(group.sources[i]);
      const bool source_lost = group.sources[i] != kNoSource && name == sources_.end();
      keep(intact ? &text : nullptr, metas[i], name == sources_.end() ? std::string_view() : name->second,
           metas_lost || source_lost);
      offset += group.frame_sizes[i];
    }
  }

  // Positions of sources follow from the names in all group records before; a lost record may have brought some. The
  // table of sources, where it is intact, knows them all.
  void learn_sources(const GroupRecord& group) {
    if (!table_read_) {
      table_read_ = true;
      try {
        Scratch scratch;
        const unsigned char* bytes = file_.view(file_.size() - kFooterBytes, kFooterBytes, scratch);
        if (report_.header_intact) {
          Scratch head;
          const std::uint64_t checksum = header_checksum(file_.view(0, kHeaderBytes, head));
          const Footer footer = decode_footer(bytes, header_, checksum, file_.size());
          const auto size = static_cast<std::size_t>(footer.sources_size);
          const std::vector<std::string> names = decode_sources(file_.view(footer.sources_offset, size, scratch), size);
          for (std::size_t i = 0; i < names.size(); ++i) sources_.emplace(static_cast<std::uint16_t>(i), names[i]);
          table_known_ = true;
        }
      } catch (const FormatFault&) {
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kStoreCorrupt) throw;
      }
    }
    if (table_known_) return;
    // New names of a record take the positions that its documents use and none before it used: in their order, the
    // greatest ones.
    std::vector<std::uint16_t> used;
    for (const std::uint16_t code : group.sources) {
      if (code != kNoSource && std::find(used.begin(), used.end(), code) == used.end()) used.push_back(code);
    }
    std::sort(used.begin(), used.end());
    const std::size_t fresh = group.new_sources.size();
    if (fresh > used.size()) return;
    for (std::size_t i = 0; i < fresh; ++i) sources_.emplace(used[used.size() - fresh + i], group.new_sources[i]);
  }

  void keep(const std::string* text, std::string_view meta, std::string_view source, bool meta_lost) {
    if (text == nullptr) {
      report_.lost_texts.push_back(writer_->documents());
      writer_->append({}, kLostMeta, {});
      return;
    }
    if (meta_lost) report_.lost_metas.push_back(writer_->documents());
    writer_->append(*text, meta, source);
  }

  MappedFile file_;
  const StoreProgress& progress_;
  Header header_;
  std::string dictionary_;
  std::unique_ptr<Decompressor> decompressor_;
  Decompressor plain_{std::string_view()};
  std::map<std::uint64_t, Found> groups_;
  std::map<std::uint16_t, std::string> sources_;
  bool table_read_ = false;
  bool table_known_ = false;
  std::uint64_t documents_ = 0;
  std::uint64_t data_end_ = 0;
  Scratch group_scratch_, frame_scratch_;
  std::unique_ptr<StoreWriter> writer_;
  RepairReport report_;
};

}  // namespace

RepairReport repair_store(const std::string& path, const std::string& target, int threads,
                          const StoreProgress& progress) {
  return Repair(path, progress).run(target, threads);
}

}  // namespace tttnn
