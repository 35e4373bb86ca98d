// The compact index: answers against an exact scan, with filters, copies and many threads; the same files every time;
// and damage, which is an error that names the file or the answer of before, never a read outside the files. Run it
// under Address-, UndefinedBehavior- and ThreadSanitizer. An argument is a number of random mutations.
#include <compact_builder.h>
#include <compact_index.h>
#include <error.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "check.h"

namespace {

namespace fs = std::filesystem;
using Copies = std::vector<std::pair<std::int64_t, std::int64_t>>;

constexpr std::size_t kDim = 20;
constexpr std::size_t kIds = 1502;  // two are copies
constexpr std::size_t kK = 10;
const Copies kCopies = {{7, 4}, {9, 0}};
const char* const kNames[] = {"graph.links", "vectors.full", "vectors.int8"};

std::vector<float> random_vectors(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> vectors(count * kDim);
  for (float& value : vectors) value = normal(random);
  return vectors;
}

// By id, the copies as they are.
std::vector<float> all_vectors() {
  auto vectors = random_vectors(kIds, 0);
  for (const auto& [id, first] : kCopies)
    std::copy_n(vectors.begin() + first * static_cast<std::int64_t>(kDim), kDim,
                vectors.begin() + id * static_cast<std::int64_t>(kDim));
  return vectors;
}

void build(const fs::path& folder, tttnn::CompactKind kind, tttnn::Metric metric, std::size_t seed = 0) {
  fs::create_directories(folder);
  const auto vectors = all_vectors();
  tttnn::CompactBuilder builder(kDim, kind, metric, kIds, {8, 60, seed});
  std::vector<std::int64_t> nodes;
  for (std::size_t id = 0; id < kIds; ++id)
    if (id != 7 && id != 9) nodes.push_back(static_cast<std::int64_t>(id));
  for (const std::int64_t id : nodes) builder.add(vectors.data() + id * static_cast<std::int64_t>(kDim), &id, 1);
  const char* compact = kind == tttnn::CompactKind::kInt8 ? "vectors.int8" : "vectors.float16";
  builder.save((folder / kNames[0]).string(), (folder / compact).string());
  auto writer = builder.full_writer((folder / kNames[1]).string());
  for (const std::int64_t id : nodes)
    writer->add(reinterpret_cast<const std::byte*>(vectors.data() + id * static_cast<std::int64_t>(kDim)));
  writer->finish();
}

tttnn::CompactIndex open(const fs::path& folder, tttnn::CompactKind kind = tttnn::CompactKind::kInt8,
                         tttnn::Metric metric = tttnn::Metric::kL2) {
  return tttnn::CompactIndex(folder.string(), kind, kDim, metric, kIds, kCopies);
}

struct Answer {
  std::vector<std::int64_t> ids;
  std::vector<float> distances;
  bool operator==(const Answer& other) const { return ids == other.ids && distances == other.distances; }
};

Answer search(const tttnn::CompactIndex& index, const std::vector<float>& queries, tttnn::SearchMethod method,
              const std::uint8_t* allowed = nullptr, int threads = 0) {
  const std::size_t count = queries.size() / kDim;
  Answer answer{std::vector<std::int64_t>(count * kK), std::vector<float>(count * kK)};
  tttnn::SearchRequest request{queries.data(), count, kK, 80};
  request.method = method;
  request.allowed = allowed;
  request.threads = threads;
  index.search(request, answer.ids.data(), answer.distances.data());
  return answer;
}

void answers(const fs::path& folder) {
  const auto queries = random_vectors(50, 1);
  const auto vectors = all_vectors();
  std::vector<std::uint8_t> allowed(kIds, 0);
  for (std::size_t i = 0; i < kIds; i += 3) allowed[i] = 1;
  allowed[4] = 0;
  allowed[7] = 1;  // a copy may be an answer where its first may not
  for (const auto kind : {tttnn::CompactKind::kFloat16, tttnn::CompactKind::kInt8}) {
    for (const auto metric : {tttnn::Metric::kL2, tttnn::Metric::kIp}) {
      build(folder, kind, metric);
      const auto index = open(folder, kind, metric);
      CHECK(index.nodes() == kIds - 2);
      index.verify();
      for (const std::uint8_t* may :
           {static_cast<const std::uint8_t*>(nullptr), static_cast<const std::uint8_t*>(allowed.data())}) {
        const Answer true_one = search(index, queries, tttnn::SearchMethod::kScan, may);
        const Answer found = search(index, queries, tttnn::SearchMethod::kGraph, may);
        std::size_t good = 0;
        for (std::size_t q = 0; q < 50; ++q) {
          const std::set<std::int64_t> wanted(true_one.ids.begin() + q * kK, true_one.ids.begin() + (q + 1) * kK);
          for (std::size_t i = q * kK; i < (q + 1) * kK; ++i) {
            good += wanted.count(found.ids[i]);
            CHECK(may == nullptr || may[found.ids[i]] != 0);
            // Distances are those of the full vectors.
            const std::size_t dim = kDim;
            CHECK(found.distances[i] ==
                  tttnn::distance_function(metric)(
                      queries.data() + q * kDim, vectors.data() + static_cast<std::size_t>(found.ids[i]) * kDim, &dim));
          }
        }
        CHECK(good >= 49 * kK);
      }
      std::vector<float> copy(kDim);
      const std::int64_t node = 6;  // id 6; the node after it is id 8
      index.read(&node, 1, copy.data());
      CHECK(std::equal(copy.begin(), copy.end(), vectors.begin() + 6 * kDim));
      const std::int64_t after = 7;
      index.read(&after, 1, copy.data());
      CHECK(std::equal(copy.begin(), copy.end(), vectors.begin() + 8 * kDim));
    }
  }
  // A vector and its copy are found together, by id.
  build(folder, tttnn::CompactKind::kInt8, tttnn::Metric::kL2);
  const auto index = open(folder);
  const std::vector<float> fifth(vectors.begin() + 4 * kDim, vectors.begin() + 5 * kDim);
  const Answer answer = search(index, fifth, tttnn::SearchMethod::kGraph);
  CHECK(answer.ids[0] == 4 && answer.ids[1] == 7 && answer.distances[1] == 0.0f);
}

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string{std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& bytes) {
  fs::remove(path);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

void threads(const fs::path& folder) {
  const auto queries = random_vectors(64, 2);
  const auto index = open(folder);  // nothing of it was checked yet
  std::vector<Answer> found(4);
  std::vector<std::thread> running;
  for (std::size_t i = 0; i < 4; ++i)
    running.emplace_back([&, i] { found[i] = search(index, queries, tttnn::SearchMethod::kGraph, nullptr, 2); });
  for (auto& thread : running) thread.join();
  for (const Answer& answer : found) CHECK(answer == found[0]);
}

void same_files(const fs::path& folder) {
  const fs::path again = folder / "again", other = folder / "other";
  build(again, tttnn::CompactKind::kInt8, tttnn::Metric::kL2);
  build(other, tttnn::CompactKind::kInt8, tttnn::Metric::kL2, 1);
  for (const char* name : kNames) {
    CHECK(bytes_of(folder / name) == bytes_of(again / name));
    // The same vectors, another graph: its files do not mix with these.
    fs::copy_file(other / name, again / name, fs::copy_options::overwrite_existing);
    bool refused = false;
    try {
      open(again);
    } catch (const tttnn::Error& error) {
      refused = error.code() == tttnn::ErrorCode::kIndexCorrupt;
    }
    CHECK(refused);
    fs::copy_file(folder / name, again / name, fs::copy_options::overwrite_existing);
  }
}

void damage(const fs::path& folder, int mutations) {
  const auto queries = random_vectors(8, 3);
  Answer expected;
  {
    const auto index = open(folder);
    expected = search(index, queries, tttnn::SearchMethod::kGraph);
  }
  std::mt19937 random(4);
  for (int trial = 0; trial < mutations; ++trial) {
    const std::string name = kNames[trial % 3];
    const std::string whole = bytes_of(folder / name);
    std::string spoiled = whole;
    const int what = trial / 3 % 4;
    const std::size_t range = what == 0 ? 128 : whole.size();
    if (what == 3) {
      spoiled.resize(random() % whole.size());
    } else {
      spoiled[random() % range] ^= static_cast<char>(1u << random() % 8);
    }
    write(folder / name, spoiled);
    bool named = false;
    try {
      const auto index = open(folder);
      CHECK(search(index, queries, tttnn::SearchMethod::kGraph) == expected);
      index.verify();
    } catch (const tttnn::Error& error) {
      named =
          error.code() == tttnn::ErrorCode::kIndexCorrupt && std::string(error.what()).find(name) != std::string::npos;
      if (!named) std::fprintf(stderr, "%s\n", error.what());
    }
    CHECK(named);
    write(folder / name, whole);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const fs::path folder = "/tmp/tttnn_compact_" + std::to_string(getpid());
  answers(folder);
  threads(folder);
  same_files(folder);
  damage(folder, argc > 1 ? std::atoi(argv[1]) : 240);
  fs::remove_all(folder);
  std::puts("compact index: answers, files and damage as they should be");
  return 0;
}
