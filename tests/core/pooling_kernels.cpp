// Pooling at every SIMD level and thread count against its reference loop. Run it under AddressSanitizer: the inputs
// lie at the very end of their allocations.
#include <pooling.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

int failures = 0;

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "pooling: %s\n", what);
  ++failures;
}

std::uint16_t to_bfloat16(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  return static_cast<std::uint16_t>(word >> 16);
}

void one(std::size_t batch, std::size_t tokens, std::size_t dim, tttnn::HiddenType type, tttnn::PoolOptions options,
         std::mt19937& random) {
  std::normal_distribution<float> normal;
  const std::size_t size = batch * tokens * dim;
  std::vector<float> wide(size);
  std::vector<std::uint16_t> narrow(size);
  for (std::size_t i = 0; i < size; ++i) {
    wide[i] = normal(random);
    narrow[i] = to_bfloat16(wide[i]);
  }
  std::vector<std::uint8_t> mask(batch * tokens);
  for (auto& value : mask) value = static_cast<std::uint8_t>(random() % 3 != 0);
  std::vector<std::int64_t> rows(batch);
  for (std::size_t i = 0; i < batch; ++i) rows[i] = static_cast<std::int64_t>(batch - 1 - i);
  const void* data = type == tttnn::HiddenType::kFloat32 ? static_cast<const void*>(wide.data()) : narrow.data();
  const tttnn::HiddenStates hidden{data, type, batch, tokens, dim, mask.data()};

  std::vector<float> expected(batch * dim), first, found(batch * dim);
  tttnn::pool_reference(hidden, rows.data(), expected.data(), options);
  for (int level = 0; level <= static_cast<int>(tttnn::simd_level()); ++level) {
    for (const int threads : {1, 0}) {
      options.level = static_cast<tttnn::SimdLevel>(level);
      options.threads = threads;
      check(tttnn::pool(hidden, rows.data(), found.data(), options) == -1, "a finite row was reported");
      for (std::size_t i = 0; i < found.size(); ++i)
        if (std::fabs(found[i] - expected[i]) > 4e-6f) {
          check(false, "differs from the reference");
          break;
        }
      if (first.empty()) first = found;
      check(first == found, "levels or threads differ");
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const std::size_t batch : {1u, 3u, 40u})
    for (const std::size_t tokens : {1u, 7u, 33u})
      for (const std::size_t dim : {1u, 15u, 16u, 33u, 384u})
        for (const auto type : {tttnn::HiddenType::kFloat32, tttnn::HiddenType::kBFloat16})
          for (const auto pooling : {tttnn::Pooling::kMean, tttnn::Pooling::kCls})
            for (const bool normalize : {true, false}) {
              tttnn::PoolOptions options;
              options.pooling = pooling;
              options.normalize = normalize;
              one(batch, tokens, dim, type, options, random);
            }
  return failures == 0 ? 0 : 1;
}
