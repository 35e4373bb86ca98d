#include "store_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "codec.h"
#include "error.h"
#include "io_error.h"
#include "mapped_file.h"

namespace tttnn {

namespace {

// A job is closed at this many bytes of text: large enough to hide the queue, small enough to keep threads busy.
constexpr std::size_t kJobBytes = 256u << 10;
// Text that waits for its compressor or its turn, per thread; a job in hand may exceed it.
constexpr std::size_t kInFlightBytesPerThread = 8u << 20;
constexpr std::size_t kBufferBytes = 1u << 20;
// Training: this many times the dictionary's size, of at most this much of each text (zstd's advice is 100 times).
constexpr std::size_t kTrainingFactor = 100;
constexpr std::size_t kTrainingTextBytes = 64u << 10;
constexpr std::size_t kMaxHeldBytes = 256u << 20;

[[noreturn]] void refuse(const std::string& path, const char* what) { throw io_error(path, what, errno); }

// The partial file: locked, written through a buffer, read back on resume.
class PartialFile {
 public:
  PartialFile(const std::string& target, bool keep) : target_(target), path_(target + ".partial") {
    for (;;) {
      descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
      if (descriptor_ < 0) {
        if (errno == ENOENT) throw Error(ErrorCode::kNotFound, path_ + ": its folder does not exist");
        refuse(path_, "cannot be created");
      }
      locked_ = ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0;
      if (!locked_ && !is_missing_service(errno)) {
        const int reason = errno;
        ::close(descriptor_);
        if (reason == EWOULDBLOCK) throw Error(ErrorCode::kIo, path_ + ": another writer holds it");
        throw io_error(path_, "cannot be locked", reason);
      }
      // Between open and lock its former writer may have renamed it: then the name is no longer this file.
      struct stat by_descriptor, by_name;
      if (::fstat(descriptor_, &by_descriptor) == 0 && ::stat(path_.c_str(), &by_name) == 0 &&
          by_descriptor.st_ino == by_name.st_ino && by_descriptor.st_dev == by_name.st_dev) {
        size_ = static_cast<std::uint64_t>(by_descriptor.st_size);
        break;
      }
      ::close(descriptor_);
    }
    if (!keep) cut(0);
  }
  ~PartialFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  bool locked() const { return locked_; }

  void cut(std::uint64_t size) {
    if (::ftruncate(descriptor_, static_cast<off_t>(size)) != 0 ||
        ::lseek(descriptor_, static_cast<off_t>(size), SEEK_SET) < 0) {
      refuse(path_, "cannot be cut");
    }
    size_ = size;
  }

  void write(const unsigned char* bytes, std::size_t size) {
    buffer_.insert(buffer_.end(), bytes, bytes + size);
    size_ += size;
    if (buffer_.size() >= kBufferBytes) flush();
  }
  void write(const std::vector<unsigned char>& bytes) { write(bytes.data(), bytes.size()); }

  void sync() {
    flush();
    if (::fdatasync(descriptor_) != 0 && !is_missing_service(errno)) refuse(path_, "cannot be synced");
  }

  void publish() {
    flush();
    if (::fsync(descriptor_) != 0 && !is_missing_service(errno)) refuse(path_, "cannot be synced");
    if (::rename(path_.c_str(), target_.c_str()) != 0) refuse(path_, "cannot be renamed");
    const std::size_t slash = target_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : target_.substr(0, slash + 1);
    // The rename has happened. A folder that may be written need not be readable, and not every file system syncs one.
    const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) {
      if (errno == EACCES) return;
      refuse(folder, "cannot be opened");
    }
    const int reason = ::fsync(directory) == 0 ? 0 : errno;
    ::close(directory);
    if (reason != 0 && !is_missing_service(reason)) throw io_error(folder, "cannot be synced", reason);
  }

 private:
  void flush() {
    std::size_t done = 0;
    while (done < buffer_.size()) {
      const ssize_t wrote = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
      if (wrote < 0) {
        if (errno == EINTR) continue;
        refuse(path_, "cannot be written");
      }
      done += static_cast<std::size_t>(wrote);
    }
    buffer_.clear();
  }

  std::string target_;
  std::string path_;
  int descriptor_ = -1;
  bool locked_ = false;
  std::uint64_t size_ = 0;  // bytes written, those in the buffer included
  std::vector<unsigned char> buffer_;
};

// Consecutive documents of one group, compressed together by one thread.
struct Job {
  std::string texts;
  std::vector<std::size_t> text_sizes;
  std::vector<std::string> metas;
  std::vector<std::string> sources;
  bool ends_group = false;

  // Filled by the compressor.
  std::vector<unsigned char> frames;
  std::vector<std::uint32_t> frame_sizes;
  std::vector<ContentDigest> digests;
  std::uint64_t ascii = 0;
  std::exception_ptr error;
  bool done = false;  // guarded by Compressors::mutex_
};

void compress(Job& job, Compressor& compressor) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < job.text_sizes.size(); ++i) {
    const std::string_view text(job.texts.data() + at, job.text_sizes[i]);
    at += text.size();
    job.digests.push_back(digest_of(text));
    if (all_ascii(text.data(), text.size())) job.ascii |= std::uint64_t{1} << i;
    job.frame_sizes.push_back(static_cast<std::uint32_t>(compressor.append_frame(text, job.frames)));
  }
  std::string().swap(job.texts);
}

// Threads that compress jobs; results are taken in the order of submission.
class Compressors {
 public:
  Compressors(int threads, int level, const std::string& dictionary) {
    for (int i = 0; i < threads; ++i) compressors_.emplace_back(level, dictionary);
    for (int i = 0; i < threads; ++i)
      threads_.emplace_back([this, i] { work(compressors_[static_cast<std::size_t>(i)]); });
  }
  ~Compressors() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    submitted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  Compressors(const Compressors&) = delete;
  Compressors& operator=(const Compressors&) = delete;

  void submit(std::unique_ptr<Job> job) {
    in_flight_bytes_ += job->texts.size();
    sizes_.push_back(job->texts.size());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back(job.get());
      in_order_.push_back(std::move(job));
    }
    submitted_.notify_one();
  }

  bool full() const { return in_flight_bytes_ > kInFlightBytesPerThread * threads_.size(); }

  // The oldest job: null where there is none, or it is not done and `wait` is false.
  std::unique_ptr<Job> take(bool wait) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (in_order_.empty()) return nullptr;
    if (wait) done_.wait(lock, [this] { return in_order_.front()->done; });
    if (!in_order_.front()->done) return nullptr;
    std::unique_ptr<Job> job = std::move(in_order_.front());
    in_order_.pop_front();
    lock.unlock();
    in_flight_bytes_ -= sizes_.front();
    sizes_.pop_front();
    if (job->error) std::rethrow_exception(job->error);
    return job;
  }

 private:
  void work(Compressor& compressor) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      submitted_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      Job* job = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      try {
        compress(*job, compressor);
      } catch (...) {
        job->error = std::current_exception();
      }
      lock.lock();
      job->done = true;
      done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable submitted_;
  std::condition_variable done_;
  std::deque<Job*> waiting_;
  std::deque<std::unique_ptr<Job>> in_order_;
  std::deque<std::size_t> sizes_;    // of the jobs in order; the writer's thread only
  std::size_t in_flight_bytes_ = 0;  // the writer's thread only
  bool stopping_ = false;
  std::vector<Compressor> compressors_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::string dictionary_for(const std::vector<std::string_view>& texts, std::size_t dictionary_bytes, int level) {
  std::vector<std::string_view> samples;
  std::size_t bytes = 0;
  for (const std::string_view text : texts) {
    samples.push_back(text.substr(0, kTrainingTextBytes));
    bytes += samples.back().size();
  }
  // A dictionary is stored in the file: below a sixteenth of the texts it cannot cost more than it saves.
  const std::size_t capacity = std::min(dictionary_bytes, bytes / 16);
  return train_dictionary(samples, capacity, level);
}

class StoreWriter::Impl {
 public:
  Impl(const std::string& path, const WriterOptions& options)
      : options_(options), file_(path, options.resume), meta_compressor_(options.level, {}) {
    if (options_.dictionary.size() > kMaxDictionaryBytes) {
      throw Error(ErrorCode::kInvalidArgument, "dictionary must be at most " + std::to_string(kMaxDictionaryBytes) +
                                                   " bytes, got " + std::to_string(options_.dictionary.size()));
    }
    if (options_.resume && file_.size() > 0) resume();
  }

  // In a forked child the compressor threads do not exist, and joining them would wait for ever.
  ~Impl() {
    if (getpid() != owner_) static_cast<void>(compressors_.release());
  }

  std::uint64_t append(std::string_view text, std::string_view meta, std::string_view source) {
    const std::lock_guard<std::mutex> lock(mutex_);
    require_usable();
    const std::string subject = "document " + std::to_string(appended_);
    if (text.size() > kMaxTextBytes) {
      throw Error(ErrorCode::kInvalidArgument, subject + " must be at most " + std::to_string(kMaxTextBytes) +
                                                   " bytes of UTF-8, got " + std::to_string(text.size()));
    }
    if (meta.size() > kMaxMetaBytes) {
      throw Error(ErrorCode::kInvalidArgument, subject + " must have at most " + std::to_string(kMaxMetaBytes) +
                                                   " bytes of metadata, got " + std::to_string(meta.size()));
    }
    if (source.size() > kMaxMetaBytes / kGroupDocuments) {
      throw Error(ErrorCode::kInvalidArgument, subject + " has a source of " + std::to_string(source.size()) +
                                                   " bytes, expected at most " +
                                                   std::to_string(kMaxMetaBytes / kGroupDocuments));
    }
    if (appended_ >= kMaxDocuments) {
      throw Error(ErrorCode::kInvalidArgument,
                  "a store must hold at most " + std::to_string(kMaxDocuments) + " documents. Begin another store.");
    }
    try {
      if (appended_ < committed_) {
        replay(text, meta, source);
      } else if (compressors_ == nullptr && options_.dictionary.empty() && options_.dictionary_bytes > 0 &&
                 file_.size() == 0) {
        hold_for_training(text, meta, source);
      } else {
        start();
        add(text, meta, source);
      }
    } catch (...) {
      failed_ = true;
      throw;
    }
    return appended_++;
  }

  StoreSummary finish() {
    const std::lock_guard<std::mutex> lock(mutex_);
    require_usable();
    if (appended_ < committed_) {
      throw Error(ErrorCode::kInvalidArgument,
                  file_.path() + ": holds " + std::to_string(committed_) + " documents, but the source ended after " +
                      std::to_string(appended_) + ". The source changed: write the store anew, without resume.");
    }
    failed_ = true;  // until all is done: a second finish() cannot repair a first one
    train_on_held();
    start();
    if (job_ && !job_->text_sizes.empty()) submit(true);
    while (std::unique_ptr<Job> job = compressors_->take(true)) write_job(*job);
    if (!group_.frame_sizes.empty()) end_group();
    if (!span_.empty() || last_commit_ == 0) commit();
    return write_tables();
  }

  void abandon() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failed_ || getpid() != owner_) return;
    failed_ = true;
    if (compressors_ == nullptr) return;
    while (std::unique_ptr<Job> job = compressors_->take(true)) write_job(*job);
  }

  std::uint64_t documents() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return appended_;
  }
  std::uint64_t committed() const { return committed_; }
  bool locked() const { return file_.locked(); }

 private:
  struct Held {
    std::string text, meta, source;
  };

  void require_usable() const {
    if (getpid() != owner_) {
      throw Error(ErrorCode::kInvalidArgument, file_.path() + ": the writer belongs to the process that opened it");
    }
    if (failed_) throw Error(ErrorCode::kInvalidArgument, file_.path() + ": the writer has failed or finished");
  }

  // Appended documents that were committed before: hashed, compared, not written.
  void replay(std::string_view text, std::string_view meta, std::string_view source) {
    hasher_.add(text.size(), digest_of(text), meta, source);
    const std::uint64_t next = appended_ + 1;
    if (next % kGroupDocuments != 0 && next != committed_) return;
    const std::size_t group = static_cast<std::size_t>(appended_ / kGroupDocuments);
    if (hasher_.end_group() != group_digests_[group]) {
      throw Error(ErrorCode::kInvalidArgument,
                  file_.path() + ": documents " + std::to_string(group * kGroupDocuments) + " to " +
                      std::to_string(appended_) +
                      " are not those that were written before the interruption. The source changed: write the store "
                      "anew, without resume.");
    }
  }

  void hold_for_training(std::string_view text, std::string_view meta, std::string_view source) {
    held_.push_back({std::string(text), std::string(meta), std::string(source)});
    held_bytes_ += text.size();
    held_samples_ += std::min(text.size(), kTrainingTextBytes);
    if (held_samples_ >= kTrainingFactor * options_.dictionary_bytes || held_bytes_ >= kMaxHeldBytes) train_on_held();
  }

  void train_on_held() {
    if (held_.empty()) return;
    std::vector<std::string_view> texts;
    for (const Held& held : held_) texts.push_back(held.text);
    dictionary_ = dictionary_for(texts, options_.dictionary_bytes, options_.level);
    start();
    std::vector<Held> held = std::move(held_);
    held_.clear();
    for (const Held& document : held) add(document.text, document.meta, document.source);
  }

  // Writes the header of a new file and starts the compressors.
  void start() {
    if (compressors_ != nullptr) return;
    if (file_.size() == 0) {
      if (!options_.dictionary.empty()) dictionary_ = options_.dictionary;
      Header header;
      header.level = static_cast<std::uint32_t>(options_.level);
      header.dictionary_wanted = static_cast<std::uint32_t>(options_.dictionary_bytes);
      header.data_begin = kHeaderBytes;
      if (!dictionary_.empty()) {
        header.dictionary_offset = kHeaderBytes + 16;
        header.dictionary_size = dictionary_.size();
        header.dictionary_checksum = checksum64(dictionary_.data(), dictionary_.size());
        header.data_begin = header.dictionary_offset + header.dictionary_size;
      }
      const std::vector<unsigned char> bytes = encode_header(header);
      header_checksum_ = header_checksum(bytes.data());
      data_begin_ = header.data_begin;
      file_.write(bytes);
      if (!dictionary_.empty()) {
        file_.write(encode_frame_head("DICT", dictionary_.size()));
        file_.write(reinterpret_cast<const unsigned char*>(dictionary_.data()), dictionary_.size());
      }
      group_.base = file_.size();
    }
    compressors_ = std::make_unique<Compressors>(options_.threads, options_.level, dictionary_);
  }

  void add(std::string_view text, std::string_view meta, std::string_view source) {
    if (job_ == nullptr) job_ = std::make_unique<Job>();
    job_->texts.append(text);
    job_->text_sizes.push_back(text.size());
    job_->metas.emplace_back(meta);
    job_->sources.emplace_back(source);
    const bool ends_group = ++submitted_documents_ % kGroupDocuments == 0;
    if (ends_group || job_->texts.size() >= kJobBytes) submit(ends_group);
  }

  void submit(bool ends_group) {
    job_->ends_group = ends_group;
    compressors_->submit(std::move(job_));
    while (std::unique_ptr<Job> job = compressors_->take(compressors_->full())) write_job(*job);
  }

  void write_job(const Job& job) {
    file_.write(job.frames.data(), job.frames.size());
    for (std::size_t i = 0; i < job.text_sizes.size(); ++i) {
      if ((job.ascii >> i & 1) != 0) {
        group_.ascii |= std::uint64_t{1} << group_.frame_sizes.size();
        ++commit_.ascii_documents;
      }
      group_.frame_sizes.push_back(job.frame_sizes[i]);
      group_.sources.push_back(source_code(job.sources[i]));
      metas_.push_back(job.metas[i]);
      hasher_.add(job.text_sizes[i], job.digests[i], job.metas[i], job.sources[i]);
      commit_.text_bytes += job.text_sizes[i];
      commit_.meta_bytes += job.metas[i].size();
      commit_.largest_document = std::max<std::uint64_t>(commit_.largest_document, job.text_sizes[i]);
      ++commit_.documents;
    }
    if (job.ends_group) {
      end_group();
      if (file_.size() - commit_end_ >= options_.commit_bytes) commit();
    }
  }

  std::uint16_t source_code(const std::string& source) {
    if (source.empty()) return kNoSource;
    const auto found = source_codes_.find(source);
    if (found != source_codes_.end()) return found->second;
    if (sources_.size() >= kMaxSources) {
      throw Error(ErrorCode::kInvalidArgument, "a store must have at most " + std::to_string(kMaxSources) +
                                                   " different sources, document " + std::to_string(commit_.documents) +
                                                   " brings one more");
    }
    const std::uint16_t code = static_cast<std::uint16_t>(sources_.size());
    sources_.push_back(source);
    source_codes_.emplace(source, code);
    group_.new_sources.push_back(source);
    return code;
  }

  void end_group() {
    group_.first_document = commit_.documents - group_.frame_sizes.size();
    group_.digest = hasher_.end_group();
    std::vector<unsigned char> meta_frame;
    const bool any = std::any_of(metas_.begin(), metas_.end(), [](const std::string& meta) { return !meta.empty(); });
    if (any) {
      const std::string packed = pack_metas(metas_);
      group_.meta_raw_size = packed.size();
      meta_compressor_.append_frame(packed, meta_frame);
      group_.meta_frame = std::string_view(reinterpret_cast<const char*>(meta_frame.data()), meta_frame.size());
    }
    span_.push_back(file_.size());
    file_.write(encode_group(group_));
    index_.add(group_);
    metas_.clear();
    group_ = GroupRecord();
    group_.base = file_.size();
  }

  void commit() {
    commit_.offset = file_.size();
    commit_.previous = last_commit_;
    commit_.digest = hasher_.state();
    commit_.groups = std::move(span_);
    span_.clear();
    file_.write(encode_commit(commit_));
    file_.sync();
    last_commit_ = commit_.offset;
    commit_end_ = file_.size();
    group_.base = file_.size();
  }

  StoreSummary write_tables() {
    Footer footer;
    footer.data_begin = data_begin_;
    footer.data_end = file_.size();
    footer.documents = commit_.documents;
    footer.text_bytes = commit_.text_bytes;
    footer.meta_bytes = commit_.meta_bytes;
    footer.largest_document = commit_.largest_document;
    footer.ascii_documents = commit_.ascii_documents;
    footer.store_id = hasher_.state();
    footer.header_checksum = header_checksum_;
    index_.seal(footer.store_id);
    // The first page begins at a multiple of its size, after a padding frame and the 16 bytes of its own frame.
    std::uint64_t pages_begin = (file_.size() + 16 + kPageBytes - 1) / kPageBytes * kPageBytes;
    if (pages_begin != file_.size() + 16) {
      if (pages_begin - 16 - file_.size() < 16) pages_begin += kPageBytes;
      file_.write(encode_padding(static_cast<std::size_t>(pages_begin - 16 - file_.size())));
    }
    file_.write(encode_frame_head("INDX", index_.pages().size() * kPageBytes));
    footer.index_offset = file_.size();
    footer.index_pages = index_.pages().size();
    for (const auto& page : index_.pages()) file_.write(page.data(), page.size());
    const std::vector<unsigned char> sources = encode_sources(sources_);
    footer.sources_offset = file_.size();
    footer.sources_size = sources.size();
    file_.write(sources);
    footer.file_size = file_.size() + kFooterBytes;
    file_.write(encode_footer(footer));
    file_.publish();
    return {footer.documents, footer.text_bytes, footer.file_size, footer.store_id};
  }

  // Reads what the partial file holds up to its last commit record, and cuts the rest off.
  void resume() {
    const MappedFile bytes(file_.path(), FileAccess::kPread);
    Scratch scratch;
    Header header;
    if (bytes.size() < kHeaderBytes) return file_.cut(0);
    try {
      const unsigned char* at = bytes.view(0, kHeaderBytes, scratch);
      header_checksum_ = header_checksum(at);
      header = decode_header(at, bytes.size());
    } catch (const FormatFault& fault) {
      if (fault.newer) throw Error(ErrorCode::kStoreVersion, file_.path() + ": " + fault.what);
      return file_.cut(0);  // killed before the first commit: nothing here was promised
    }
    const std::uint64_t last = find_last_commit(bytes);
    if (last == 0) return file_.cut(0);
    if (header.level != static_cast<std::uint32_t>(options_.level) ||
        header.dictionary_wanted != static_cast<std::uint32_t>(options_.dictionary_bytes)) {
      throw Error(ErrorCode::kInvalidArgument,
                  file_.path() + ": was begun with level " + std::to_string(header.level) + " and dictionary_bytes " +
                      std::to_string(header.dictionary_wanted) + ", got level " + std::to_string(options_.level) +
                      " and dictionary_bytes " + std::to_string(options_.dictionary_bytes) +
                      ". Resume with the same settings or write the store anew.");
    }
    try {
      load(bytes, header, last);
    } catch (const FormatFault& fault) {
      throw Error(ErrorCode::kStoreCorrupt,
                  file_.path() + ": " + fault.what + ". Write the store anew, without resume.");
    }
    file_.cut(commit_end_);
  }

  // From the end backwards: a commit record names its own place and carries a checksum, so a text that looks like one
  // is not taken for one.
  std::uint64_t find_last_commit(const MappedFile& bytes) {
    Scratch window, record;
    constexpr std::size_t kWindow = 1u << 20;
    const std::string tag = "CMIT";
    std::uint64_t end = bytes.size();
    while (end > kHeaderBytes) {
      const std::uint64_t begin = end > kWindow + kHeaderBytes ? end - kWindow : kHeaderBytes;
      // 12 bytes beyond, so that a mark across two windows is seen in the lower one.
      const std::size_t size = static_cast<std::size_t>(std::min(bytes.size(), end + 12) - begin);
      const std::string_view text(reinterpret_cast<const char*>(bytes.view(begin, size, window)), size);
      for (std::size_t at = text.rfind(tag); at != std::string_view::npos && at > 0; at = text.rfind(tag, at - 1)) {
        if (at < 8) break;
        const std::uint64_t offset = begin + at - 8;
        if (bytes.size() - offset < kCommitFixedBytes) continue;
        try {
          const std::size_t record_bytes = commit_record_size(bytes.view(offset, 16, record));
          if (record_bytes > bytes.size() - offset) continue;
          if (decode_commit(bytes.view(offset, record_bytes, record), record_bytes).offset == offset) return offset;
        } catch (const FormatFault&) {
          continue;
        }
      }
      end = begin;
    }
    return 0;
  }

  void load(const MappedFile& bytes, const Header& header, std::uint64_t last) {
    Scratch scratch;
    if (header.dictionary_size > 0) {
      const auto size = static_cast<std::size_t>(header.dictionary_size);
      const unsigned char* at = bytes.view(header.dictionary_offset, size, scratch);
      dictionary_.assign(reinterpret_cast<const char*>(at), size);
      if (checksum64(dictionary_.data(), size) != header.dictionary_checksum) {
        throw FormatFault{"dictionary at byte " + std::to_string(header.dictionary_offset) + " fails its checksum"};
      }
    }
    if (!options_.dictionary.empty() && options_.dictionary != dictionary_) {
      throw Error(ErrorCode::kInvalidArgument, file_.path() + ": was begun with another dictionary");
    }
    data_begin_ = header.data_begin;

    std::vector<CommitRecord> commits;
    for (std::uint64_t offset = last; offset != 0; offset = commits.back().previous) {
      const std::size_t size = commit_record_size(bytes.view(offset, 16, scratch));
      commits.push_back(decode_commit(bytes.view(offset, size, scratch), size));
      if (commits.back().offset != offset || commits.back().previous >= offset) {
        throw FormatFault{"commit record at byte " + std::to_string(offset) + " names another place"};
      }
      if (commits.size() == 1) commit_end_ = offset + size;
    }
    // finish() writes a last commit record that is short, or ends with a group that is not full. A writer that goes on
    // from there would not write the bytes of one that never stopped: go back to the commit record before it.
    const std::uint64_t span_begin =
        commits.size() > 1 ? commits[1].offset + kCommitFixedBytes + 8 * commits[1].groups.size() : 0;
    if (commits[0].documents % kGroupDocuments != 0 || last - span_begin < options_.commit_bytes) {
      commit_end_ = span_begin;
      commits.erase(commits.begin());
      if (commits.empty()) {
        dictionary_.clear();
        return;
      }
      last = commits[0].offset;
    }
    std::reverse(commits.begin(), commits.end());
    std::uint64_t documents = 0;
    for (const CommitRecord& commit : commits) {
      for (const std::uint64_t offset : commit.groups) {
        const std::size_t size = group_record_size(bytes.view(offset, 16, scratch));
        GroupRecord group = decode_group(bytes.view(offset, size, scratch), size);
        if (group.first_document != documents) {
          throw FormatFault{"group record at byte " + std::to_string(offset) + " begins with document " +
                            std::to_string(group.first_document) + ", expected " + std::to_string(documents)};
        }
        documents += group.frame_sizes.size();
        for (const std::string& name : group.new_sources) {
          source_codes_.emplace(name, static_cast<std::uint16_t>(sources_.size()));
          sources_.push_back(name);
        }
        group_digests_.push_back(group.digest);
        index_.add(group);
      }
    }
    commit_ = commits.back();
    if (commit_.documents != documents) {
      throw FormatFault{"commit record at byte " + std::to_string(last) + " counts " +
                        std::to_string(commit_.documents) + " documents, found " + std::to_string(documents)};
    }
    last_commit_ = last;
    group_.base = commit_end_;
    committed_ = documents;
    submitted_documents_ = documents;
  }

  mutable std::mutex mutex_;
  const pid_t owner_ = getpid();
  const WriterOptions options_;
  PartialFile file_;
  Compressor meta_compressor_;
  std::string dictionary_;
  std::uint64_t header_checksum_ = 0;
  std::uint64_t data_begin_ = 0;

  std::uint64_t appended_ = 0;
  std::uint64_t committed_ = 0;
  std::uint64_t submitted_documents_ = 0;
  std::vector<ContentDigest> group_digests_;  // of the resumed part

  std::vector<Held> held_;  // documents that wait until there are enough of them to train a dictionary
  std::size_t held_bytes_ = 0;
  std::size_t held_samples_ = 0;

  std::unique_ptr<Job> job_;
  GroupRecord group_;
  std::vector<std::string> metas_;
  ContentHasher hasher_;
  std::vector<std::string> sources_;
  std::unordered_map<std::string, std::uint16_t> source_codes_;
  IndexBuilder index_;
  CommitRecord commit_;              // running totals
  std::vector<std::uint64_t> span_;  // group records since the last commit
  std::uint64_t last_commit_ = 0;
  std::uint64_t commit_end_ = 0;
  bool failed_ = false;
  std::unique_ptr<Compressors> compressors_;  // last: its threads end before what they use
};

StoreWriter::StoreWriter(const std::string& path, const WriterOptions& options)
    : impl_(std::make_unique<Impl>(path, options)) {}
StoreWriter::~StoreWriter() = default;
std::uint64_t StoreWriter::append(std::string_view text, std::string_view meta, std::string_view source) {
  return impl_->append(text, meta, source);
}
StoreSummary StoreWriter::finish() { return impl_->finish(); }
void StoreWriter::abandon() { impl_->abandon(); }
std::uint64_t StoreWriter::documents() const { return impl_->documents(); }
std::uint64_t StoreWriter::committed() const noexcept { return impl_->committed(); }
bool StoreWriter::locked() const noexcept { return impl_->locked(); }

}  // namespace tttnn
