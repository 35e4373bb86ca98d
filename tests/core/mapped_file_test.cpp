// Maps that are cut short while they are open: what is read from them is zeros and is told, in every thread and in code
// that knows nothing of it, and a store, a graph and a scan over such a map give an answer or an error, never the end
// of the process. Run it under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer.
#include <hnsw.h>
#include <mapped_file.h>
#include <parallel.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "store_samples.h"

using tttnn::FileAccess;
using tttnn::MappedFile;

namespace {

constexpr std::size_t kPage = 4096;

void cut(const std::string& path, std::size_t size) { CHECK(truncate(path.c_str(), static_cast<off_t>(size)) == 0); }

std::size_t descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

void plain_files(const std::string& path) {
  const std::string bytes(40 * kPage + 17, 'x');
  samples::put(path, bytes);
  const std::size_t before = descriptors();
  auto file = std::make_unique<MappedFile>(path, FileAccess::kMmap);
  const MappedFile other(path, FileAccess::kMmap, false);
  CHECK(descriptors() == before);
  CHECK(file->size() == bytes.size() && std::memcmp(file->map(), bytes.data(), bytes.size()) == 0);
  CHECK(!file->broken());
  file->require_whole();

  cut(path, 10 * kPage + 5);
  CHECK(file->map()[10 * kPage + 4] == 'x' && file->map()[10 * kPage + 5] == 0);
  CHECK(!file->broken());  // the rest of the last page that is kept reads as zeros without a fault
  std::vector<std::thread> threads;
  std::atomic<std::size_t> sum{0};
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t at = 0; at < bytes.size(); at += 1 + 97 * t) sum += file->map()[at];
      std::string copy(29 * kPage, 'y');
      std::memcpy(&copy[0], file->map() + 11 * kPage, copy.size());
      CHECK(copy == std::string(copy.size(), '\0'));
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(sum > 0 && file->broken());
  CHECK(!other.broken());  // each map has its own mark
  try {
    file->require_whole();
    CHECK(false);
  } catch (const tttnn::Error& error) {
    CHECK(samples::is_damage(error, path) && std::strstr(error.what(), "163857 bytes when it was opened") != nullptr);
  }
  // A place in the list that is used again begins whole, and the pool's workers are helped, too.
  file.reset();
  samples::put(path, bytes);
  const MappedFile again(path, FileAccess::kMmap);
  CHECK(!again.broken());
  cut(path, 0);
  std::atomic<std::size_t> zeros{0};
  tttnn::shared_pool().run(40, [&](std::size_t i) { zeros += again.map()[i * kPage] == 0; }, 0);
  CHECK(zeros == 40 && again.broken());

  samples::put(path, "");
  const MappedFile empty(path, FileAccess::kMmap);
  CHECK(empty.size() == 0 && empty.map() == nullptr && !empty.broken());
  const MappedFile read(path, FileAccess::kPread);
  CHECK(descriptors() == before + 1);
}

// A store whose end is cut off while it is read by many.
void stores(const std::string& path) {
  const std::vector<samples::Sample> documents = samples::documents(2000);
  tttnn::WriterOptions options;
  options.dictionary_bytes = 8192;
  samples::write(path, documents, options);
  const std::string whole = samples::bytes_of(path);
  samples::Random random{5};
  for (int round = 0; round < 12; ++round) {
    samples::put(path, whole);
    const tttnn::StoreReader reader(path, FileAccess::kMmap);
    const std::size_t left = round == 0 ? 0 : static_cast<std::size_t>(random.below(whole.size() - 2 * kPage));
    std::atomic<std::size_t> refused{0};
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = t; i < documents.size(); i += 3) {
          if (t == 0 && i == 900) cut(path, left);
          try {
            CHECK(samples::read(reader, i) == documents[i].text);
            CHECK(reader.meta(i) == documents[i].meta);
          } catch (const tttnn::Error& error) {
            CHECK(samples::is_damage(error, path));
            ++refused;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(refused > 0);
    std::vector<std::int32_t> codes(documents.size());
    for (const auto& read : {0, 1}) {
      try {
        read == 0 ? reader.source_codes(codes.data()) : reader.verify(true, nullptr);
        CHECK(false);
      } catch (const tttnn::Error& error) {
        CHECK(samples::is_damage(error, path));
      }
    }
  }
}

// Links that became zeros lead to node 0, which need not be where they say.
void graphs(const std::string& path) {
  constexpr std::size_t kDim = 24, kCount = 3000, kK = 10;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> vectors(kCount * kDim);
  for (float& value : vectors) value = normal(random);
  std::vector<std::int64_t> ids(kCount);
  for (std::size_t i = 0; i < kCount; ++i) ids[i] = static_cast<std::int64_t>(i);
  tttnn::HnswBuilder builder(kDim, tttnn::Metric::kL2, kCount, {4, 40, 0});  // M of 4: many levels
  builder.add(vectors.data(), ids.data(), kCount);
  builder.save(path);
  const std::string whole = samples::bytes_of(path);
  const std::vector<std::uint8_t> allowed(kCount, 1);
  for (int round = 0; round < 40; ++round) {
    samples::put(path, whole);
    const MappedFile file(path, FileAccess::kMmap, false);
    const tttnn::HnswIndex index(reinterpret_cast<const std::byte*>(file.map()), static_cast<std::size_t>(file.size()),
                                 kDim, tttnn::Metric::kL2, kCount, {}, path);
    cut(path, round == 0 ? 0 : random() % (whole.size() - kPage));
    std::vector<std::int64_t> found(100 * kK);
    std::vector<float> distances(found.size());
    for (const auto method : {tttnn::SearchMethod::kGraph, tttnn::SearchMethod::kScan}) {
      const std::uint8_t* only = round % 2 == 0 ? allowed.data() : nullptr;
      index.search({vectors.data(), 100, kK, 50, only, method, 0}, found.data(), distances.data());
      for (const std::int64_t id : found) CHECK(id >= -1 && id < static_cast<std::int64_t>(kCount));
    }
    CHECK(file.broken());
  }
}

// What is not ours goes where it went before.
void foreign_faults(const std::string& path) {
  for (const bool handled : {true, false}) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      struct sigaction own = {};
      own.sa_handler = SIG_DFL;
      if (handled) own.sa_handler = [](int) { _exit(43); };
      sigaction(SIGBUS, &own, nullptr);
      samples::put(path, "some bytes");
      const MappedFile file(path, FileAccess::kMmap);  // asks before the handler that is there
      raise(SIGBUS);
      _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(handled ? WIFEXITED(status) && WEXITSTATUS(status) == 43 : WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
  }
}

void refusals() {
  try {
    const MappedFile file("/nonexistent/file", FileAccess::kMmap);
    CHECK(false);
  } catch (const tttnn::Error& error) {
    CHECK(error.code() == tttnn::ErrorCode::kNotFound);
  }
  try {
    const MappedFile folder(samples::folder(), FileAccess::kMmap);
    CHECK(false);
  } catch (const tttnn::Error& error) {
    CHECK(error.code() == tttnn::ErrorCode::kIo);
  }
}

}  // namespace

int main() {
  const std::string path = samples::folder() + "/mapped";
  foreign_faults(path);
  plain_files(path);
  stores(path);
  graphs(path);
  refusals();
  std::filesystem::remove_all(samples::folder());
  std::puts("ok");
}
