// Blocks, copies and fingerprints: alignment, exact bytes, any number of threads.
#include <arena.h>
#include <parallel.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "check.h"

int main() {
  using namespace tttnn;
  const std::size_t size = (std::size_t{3} << 20) + 77;
  Block source(size);
  Block target(size);
  CHECK(reinterpret_cast<std::uintptr_t>(source.data()) % kHugePage == 0);
  CHECK(source.size() == size);
  for (std::size_t i = 0; i < size; ++i) CHECK(source.data()[i] == std::byte{0});
  for (std::size_t i = 0; i < size; ++i) source.data()[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  Block empty(0);
  CHECK(empty.data() != nullptr);

  const std::vector<Span> spans = {{0, 1}, {3, 62}, {65, 64}, {200, 0}, {4096, 1 << 20}, {1100001, size - 1100001}};
  ThreadPool three(3);
  copy_spans(target.data(), source.data(), spans, three, 0);
  std::vector<bool> inside(size, false);
  for (const Span& span : spans)
    for (std::size_t i = 0; i < span.bytes; ++i) inside[span.offset + i] = true;
  for (std::size_t i = 0; i < size; ++i) CHECK(target.data()[i] == (inside[i] ? source.data()[i] : std::byte{0}));

  const auto expected = fingerprint_spans(source.data(), spans, three, 1);
  for (int threads : {0, 2, 3}) CHECK(fingerprint_spans(source.data(), spans, three, threads) == expected);
  CHECK(fingerprint_spans(target.data(), spans, three, 0) == expected);
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (spans[i].bytes == 0) continue;
    for (std::size_t at : {std::size_t{0}, spans[i].bytes / 2, spans[i].bytes - 1}) {
      std::byte& byte = target.data()[spans[i].offset + at];
      byte ^= std::byte{0x10};
      auto changed = fingerprint_spans(target.data(), spans, three, 0);
      CHECK(changed[i] != expected[i]);
      changed[i] = expected[i];
      CHECK(changed == expected);
      byte ^= std::byte{0x10};
    }
  }
  return 0;
}
