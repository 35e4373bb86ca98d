// The graph: answers against an exact scan, many threads on one index, and damaged bytes, which give an error or an
// answer but never a read outside the file. Run it under Address-, UndefinedBehavior- and ThreadSanitizer. An argument
// is a number of random mutations.
#include <error.h>
#include <hnsw.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <thread>

namespace {

constexpr std::size_t kDim = 20;
constexpr std::size_t kCount = 1500;
constexpr std::size_t kK = 10;

int failures = 0;

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "hnsw: %s\n", what);
  ++failures;
}

std::vector<float> random_vectors(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> vectors(count * kDim);
  for (float& value : vectors) value = normal(random);
  return vectors;
}

std::string file_of(const std::vector<float>& vectors, tttnn::Metric metric) {
  std::vector<std::int64_t> ids(kCount);
  for (std::size_t i = 0; i < kCount; ++i) ids[i] = static_cast<std::int64_t>(2 * i);
  tttnn::HnswBuilder builder(kDim, metric, kCount, {8, 60, 0});
  builder.add(vectors.data(), ids.data(), kCount / 2);
  builder.add(vectors.data() + kCount / 2 * kDim, ids.data() + kCount / 2, kCount - kCount / 2);
  const std::string path = "/tmp/tttnn_hnsw_" + std::to_string(getpid());
  builder.save(path);
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  unlink(path.c_str());
  return bytes;
}

tttnn::HnswIndex open_bytes(const std::vector<char>& bytes, tttnn::Metric metric) {
  return tttnn::HnswIndex(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), kDim, metric, 2 * kCount,
                          {{7, 4}, {9, 4}}, "graph");
}

double recall(const tttnn::HnswIndex& index, const std::vector<float>& queries, std::size_t count,
              const std::uint8_t* allowed) {
  std::vector<std::int64_t> ids(count * kK), best(count * kK);
  std::vector<float> distances(count * kK);
  tttnn::SearchRequest request{queries.data(), count, kK, 100, allowed, tttnn::SearchMethod::kGraph, 0};
  index.search(request, ids.data(), distances.data());
  request.method = tttnn::SearchMethod::kScan;
  index.search(request, best.data(), distances.data());
  std::size_t same = 0;
  for (std::size_t q = 0; q < count; ++q) {
    const std::set<std::int64_t> found(ids.begin() + static_cast<std::ptrdiff_t>(q * kK),
                                       ids.begin() + static_cast<std::ptrdiff_t>((q + 1) * kK));
    for (std::size_t i = 0; i < kK; ++i) same += found.count(best[q * kK + i]);
  }
  return static_cast<double>(same) / static_cast<double>(count * kK);
}

}  // namespace

// hnswlib's builder takes its locks in both orders. Here each builder belongs to one thread, so it cannot lock up.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() { return "detect_deadlocks=0"; }

int main(int argc, char** argv) {
  const int mutations = argc > 1 ? std::atoi(argv[1]) : 1500;
  const std::vector<float> vectors = random_vectors(kCount, 1);
  const std::vector<float> queries = random_vectors(50, 2);
  std::vector<std::uint8_t> allowed(2 * kCount);
  for (std::size_t i = 0; i < allowed.size(); ++i) allowed[i] = i % 3 == 0;

  for (const auto metric : {tttnn::Metric::kL2, tttnn::Metric::kIp}) {
    const std::string bytes = file_of(vectors, metric);
    const std::vector<char> whole(bytes.begin(), bytes.end());
    const tttnn::HnswIndex index = open_bytes(whole, metric);
    check(index.nodes() == kCount, "wrong number of nodes");
    check(recall(index, queries, 50, nullptr) > 0.95, "low recall");
    check(recall(index, queries, 50, allowed.data()) > 0.95, "low filtered recall");
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; ++t)
      threads.emplace_back([&index, &allowed, t] {
        const std::vector<float> own = random_vectors(30, 10 + t);
        for (int round = 0; round < 5; ++round) recall(index, own, 30, t % 2 ? allowed.data() : nullptr);
      });
    for (auto& thread : threads) thread.join();
  }

  const std::string bytes = file_of(vectors, tttnn::Metric::kL2);
  const std::vector<char> whole(bytes.begin(), bytes.end());
  std::mt19937_64 random(3);
  int refused = 0;
  for (int i = 0; i < mutations; ++i) {
    std::vector<char> spoiled = whole;
    if (random() % 5 == 0) {
      spoiled.resize(random() % (whole.size() + 1));
      spoiled.shrink_to_fit();
    }
    const std::size_t area = random() % 2 ? 96 : spoiled.size();
    for (std::size_t n = 1 + random() % 3; n > 0 && !spoiled.empty(); --n)
      spoiled[random() % std::min(spoiled.size(), area + 1)] = static_cast<char>(random());
    try {
      recall(open_bytes(spoiled, tttnn::Metric::kL2), queries, 3, i % 2 ? allowed.data() : nullptr);
    } catch (const tttnn::Error& error) {
      ++refused;
      check(error.code() == tttnn::ErrorCode::kIndexCorrupt, error.what());
    }
  }
  check(refused > mutations / 4, "hardly any damage was noticed");
  std::printf("hnsw: %d of %d damaged files refused, the others searched\n", refused, mutations);
  return failures == 0 ? 0 : 1;
}
