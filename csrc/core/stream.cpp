#include "stream.h"

#include <cstdint>
#include <cstring>

#include "build_info.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tttnn {

namespace {

void plain(void* destination, const void* source, std::size_t bytes) { std::memcpy(destination, source, bytes); }

#if defined(__x86_64__)

// Bytes before the first whole cache line of the destination.
std::size_t head(const void* destination, std::size_t bytes) {
  const std::size_t before = (64 - reinterpret_cast<std::uintptr_t>(destination) % 64) % 64;
  return before < bytes ? before : bytes;
}

__attribute__((target("avx512f"))) void stream_v4(void* destination, const void* source, std::size_t bytes) {
  auto* to = static_cast<char*>(destination);
  const auto* from = static_cast<const char*>(source);
  std::size_t i = head(destination, bytes);
  std::memcpy(to, from, i);
  for (; i + 64 <= bytes; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
  std::memcpy(to + i, from + i, bytes - i);
}

__attribute__((target("avx2"))) void stream_v3(void* destination, const void* source, std::size_t bytes) {
  auto* to = static_cast<char*>(destination);
  const auto* from = static_cast<const char*>(source);
  std::size_t i = head(destination, bytes);
  std::memcpy(to, from, i);
  for (; i + 64 <= bytes; i += 64) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 32), high);
  }
  std::memcpy(to + i, from + i, bytes - i);
}

#endif

}  // namespace

Stream stream_copy() noexcept {
#if defined(__x86_64__)
  if (simd_level() == SimdLevel::kV4) return stream_v4;
  if (simd_level() == SimdLevel::kV3) return stream_v3;
#endif
  return plain;
}

void stream_fence() noexcept {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace tttnn
