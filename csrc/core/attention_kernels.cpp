#include "attention_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#if !defined(__clang__)
// GCC's own header initialises a value with itself to say "undefined", and GCC 12 warns of it (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

namespace tttnn {

namespace {

constexpr std::size_t kStride = 64;  // of the blocks that weigh() and slopes() read and write

namespace portable {

float widen(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// To nearest, ties to even.
std::uint16_t narrowed(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

std::uint32_t paired(std::uint16_t lower, std::uint16_t upper) {
  return lower | static_cast<std::uint32_t>(upper) << 16;
}

void multiply(const std::uint16_t* a, std::size_t a_stride, const std::uint32_t* b, std::size_t b_stride, float* c,
              std::size_t c_stride, std::size_t rows, std::size_t columns, std::size_t pairs, bool add) {
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) {
      float sum = add ? c[i * c_stride + j] : 0.0f;
      for (std::size_t p = 0; p < pairs; ++p) {
        const std::uint32_t word = b[p * b_stride + j];
        sum += widen(a[i * a_stride + 2 * p]) * widen(static_cast<std::uint16_t>(word));
        sum += widen(a[i * a_stride + 2 * p + 1]) * widen(static_cast<std::uint16_t>(word >> 16));
      }
      c[i * c_stride + j] = sum;
    }
}

void transpose(const void* from, std::size_t from_stride, void* to, std::size_t to_stride) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 16; ++j)
      std::memcpy(target + 4 * (j * to_stride + i), source + 4 * (i * from_stride + j), 4);
}

void pair(const std::uint16_t* lower, const std::uint16_t* upper, std::uint32_t* to, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) to[i] = paired(lower[i], upper[i]);
}

AttentionLoops::Softmax softmax(const float* scores, std::size_t valid, std::size_t columns, float factor,
                                std::uint16_t* to) {
  AttentionLoops::Softmax result{*std::max_element(scores, scores + valid), 0.0f};
  for (std::size_t i = 0; i < columns; ++i) {
    const float p = i < valid ? std::exp2(factor * (scores[i] - result.largest)) : 0.0f;
    result.sum += p;
    to[i] = narrowed(p);
  }
  return result;
}

void weigh(const float* scores, std::size_t keys, float factor, std::size_t columns, bool add, float* largest,
           float* total, float* sums, std::size_t rows, std::uint32_t* to) {
  for (std::size_t c = 0; c < columns; ++c) {
    float most = add ? largest[c] : factor * scores[c];
    for (std::size_t key = 0; key < keys; ++key) most = std::max(most, factor * scores[key * kStride + c]);
    const float shrink = add ? std::exp2(largest[c] - most) : 0.0f;
    largest[c] = most;
    float sum = add ? shrink * total[c] : 0.0f;
    for (std::size_t row = 0; add && row < rows; ++row) sums[row * kStride + c] *= shrink;
    for (std::size_t key = 0; key < keys; key += 2) {
      const float lower = std::exp2(factor * scores[key * kStride + c] - most);
      const float upper = key + 1 < keys ? std::exp2(factor * scores[(key + 1) * kStride + c] - most) : 0.0f;
      sum += lower + upper;
      to[key / 2 * kStride + c] = paired(narrowed(lower), narrowed(upper));
    }
    total[c] = sum;
  }
}

void slopes(const float* scores, const float* upstream, const float* lse2, const float* delta, float factor,
            std::size_t columns, bool diagonal, std::uint16_t* p, std::uint16_t* slopes, std::uint32_t* pairs) {
  for (std::size_t r = 0; r < 16; ++r)
    for (std::size_t c = 0; c < columns; ++c) {
      const std::size_t at = r * kStride + c;
      const float value = diagonal && c < r ? 0.0f : std::exp2(factor * scores[at] - lse2[c]);
      p[at] = narrowed(value);
      slopes[at] = narrowed(value * (upstream[at] - delta[c]));
      if (r % 2 == 1) pairs[r / 2 * kStride + c] = paired(slopes[at - kStride], slopes[at]);
    }
}

void narrow(const float* from, float factor, std::uint16_t* to, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) to[i] = narrowed(factor * from[i]);
}

void add(const float* from, float* to, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) to[i] += from[i];
}

float dot(const std::uint16_t* a, const std::uint16_t* b, std::size_t size) {
  float sum = 0.0f;
  for (std::size_t i = 0; i < size; ++i) sum += widen(a[i]) * widen(b[i]);
  return sum;
}

}  // namespace portable

#if defined(__x86_64__)
namespace avx512 {

#define TTTNN_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define TTTNN_INLINE TTTNN_TARGET inline __attribute__((always_inline))

constexpr std::size_t kWidth = 16;  // floats, or words, of a register

// Four rows by kColumns registers: 16 sums in flight hide the latency of a product, and leave registers for b.
template <int kColumns>
TTTNN_INLINE void tile(const std::uint16_t* a, std::size_t a_stride, const std::uint32_t* b, std::size_t b_stride,
                       float* c, std::size_t c_stride, std::size_t pairs, bool add) {
  constexpr int kRows = 4;
  __m512 sums[kRows][kColumns];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j)
      sums[i][j] = add ? _mm512_loadu_ps(c + i * c_stride + j * kWidth) : _mm512_setzero_ps();
  for (std::size_t p = 0; p < pairs; ++p) {
    __m512i columns[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) columns[j] = _mm512_loadu_si512(b + p * b_stride + j * kWidth);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      int word;
      std::memcpy(&word, a + i * a_stride + 2 * p, sizeof(word));
      const __m512i row = _mm512_set1_epi32(word);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)row, (__m512bh)columns[j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) _mm512_storeu_ps(c + i * c_stride + j * kWidth, sums[i][j]);
}

template <int kColumns>
TTTNN_TARGET void tiles(const std::uint16_t* a, std::size_t a_stride, const std::uint32_t* b, std::size_t b_stride,
                        float* c, std::size_t c_stride, std::size_t rows, std::size_t pairs, bool add) {
  for (std::size_t i = 0; i < rows; i += 4)
    tile<kColumns>(a + i * a_stride, a_stride, b, b_stride, c + i * c_stride, c_stride, pairs, add);
}

TTTNN_TARGET void multiply(const std::uint16_t* a, std::size_t a_stride, const std::uint32_t* b, std::size_t b_stride,
                           float* c, std::size_t c_stride, std::size_t rows, std::size_t columns, std::size_t pairs,
                           bool add) {
  for (std::size_t j = 0; j < columns; j += 4 * kWidth) {
    const std::size_t left = columns - j;
    if (left >= 4 * kWidth) {
      tiles<4>(a, a_stride, b + j, b_stride, c + j, c_stride, rows, pairs, add);
    } else if (left == 3 * kWidth) {
      tiles<3>(a, a_stride, b + j, b_stride, c + j, c_stride, rows, pairs, add);
    } else if (left == 2 * kWidth) {
      tiles<2>(a, a_stride, b + j, b_stride, c + j, c_stride, rows, pairs, add);
    } else {
      tiles<1>(a, a_stride, b + j, b_stride, c + j, c_stride, rows, pairs, add);
    }
  }
}

// Words move by 1, 2, 4 and 8 places: pairs, quadruples, then 128-bit lanes.
TTTNN_TARGET void transpose(const void* from, std::size_t from_stride, void* to, std::size_t to_stride) {
  const std::uint32_t* source = static_cast<const std::uint32_t*>(from);
  std::uint32_t* target = static_cast<std::uint32_t*>(to);
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(source + i * from_stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(target + i * to_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(target + (i + 8) * to_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(target + (i + 4) * to_stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(target + (i + 12) * to_stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
}

TTTNN_INLINE __m512i paired(__m256i lower, __m256i upper) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(lower), _mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}

TTTNN_INLINE __m256i load16(const std::uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

TTTNN_INLINE void store16(std::uint16_t* to, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}

TTTNN_TARGET void pair(const std::uint16_t* lower, const std::uint16_t* upper, std::uint32_t* to, std::size_t size) {
  for (std::size_t i = 0; i < size; i += kWidth)
    _mm512_storeu_si512(to + i, paired(load16(lower + i), load16(upper + i)));
}

// 2^x for x up to 127: x = n + f with n whole and |f| <= 1/2, and a polynomial of degree 5 for 2^f, fitted for the
// least largest relative error. That is 2.1e-7 in float32; a probability rounded to bfloat16 has 3.9e-3. -1e30 gives 0.
TTTNN_INLINE __m512 exp2(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 value = _mm512_set1_ps(0.0013276472048310724f);
  value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(0.009675541384674337f));
  value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(0.0555071327376235f));
  value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(0.24022119722914578f));
  value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(0.6931469670643255f));
  value = _mm512_fmadd_ps(value, f, _mm512_set1_ps(1.0000000716548705f));
  return _mm512_scalef_ps(value, n);
}

TTTNN_TARGET AttentionLoops::Softmax softmax(const float* scores, std::size_t valid, std::size_t columns, float factor,
                                             std::uint16_t* to) {
  const std::size_t whole = valid / kWidth * kWidth;
  const __mmask16 rest = static_cast<__mmask16>((1u << (valid - whole)) - 1);
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 largest[4] = {lowest, lowest, lowest, lowest};
  std::size_t i = 0;
  for (; i + 4 * kWidth <= whole; i += 4 * kWidth)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) largest[j] = _mm512_max_ps(largest[j], _mm512_loadu_ps(scores + i + j * kWidth));
  for (; i < whole; i += kWidth) largest[0] = _mm512_max_ps(largest[0], _mm512_loadu_ps(scores + i));
  if (rest != 0) largest[1] = _mm512_max_ps(largest[1], _mm512_mask_loadu_ps(lowest, rest, scores + whole));
  largest[0] = _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
  const float m = _mm512_reduce_max_ps(largest[0]);

  const __m512 times = _mm512_set1_ps(factor);
  const __m512 shift = _mm512_set1_ps(m * factor);
  __m512 sum = _mm512_setzero_ps();
  for (i = 0; i < whole; i += kWidth) {
    const __m512 p = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i), times, shift));
    sum = _mm512_add_ps(sum, p);
    store16(to + i, (__m256i)_mm512_cvtneps_pbh(p));
  }
  if (rest != 0) {
    const __m512 score = _mm512_maskz_loadu_ps(rest, scores + whole);
    const __m512 p = _mm512_maskz_mov_ps(rest, exp2(_mm512_fmsub_ps(score, times, shift)));
    sum = _mm512_add_ps(sum, p);
    store16(to + whole, (__m256i)_mm512_cvtneps_pbh(p));
    i += kWidth;
  }
  for (; i < columns; i += kWidth) store16(to + i, _mm256_setzero_si256());
  return {m, _mm512_reduce_add_ps(sum)};
}

// A largest score that is infinite gives NaN, as the formula does.
TTTNN_TARGET void weigh(const float* scores, std::size_t keys, float factor, std::size_t columns, bool add,
                        float* largest, float* total, float* sums, std::size_t rows, std::uint32_t* to) {
  const __m512 times = _mm512_set1_ps(factor);
  // 0, 16, 1, 17, ...: one of each half in turn.
  const __m512i counted = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i zip = _mm512_or_si512(counted, _mm512_slli_epi32(_mm512_add_epi32(counted, _mm512_set1_epi32(16)), 16));
  for (std::size_t c = 0; c < columns; c += kWidth) {
    const float* from = scores + c;
    __m512 most[2] = {_mm512_loadu_ps(from), _mm512_loadu_ps(from + (keys - 1) * kStride)};
    std::size_t key = 0;
    for (; key + 1 < keys; key += 2)
#pragma GCC unroll 2
      for (std::size_t k = 0; k < 2; ++k) most[k] = _mm512_max_ps(most[k], _mm512_loadu_ps(from + (key + k) * kStride));
    __m512 m = _mm512_mul_ps(_mm512_max_ps(most[0], most[1]), times);
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (add) {
      const __m512 before = _mm512_loadu_ps(largest + c);
      m = _mm512_max_ps(m, before);
      const __m512 shrink = exp2(_mm512_sub_ps(before, m));
      sum[0] = _mm512_mul_ps(_mm512_loadu_ps(total + c), shrink);
      for (std::size_t row = 0; row < rows; ++row) {
        float* at = sums + row * kStride + c;
        _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), shrink));
      }
    }
    for (key = 0; key + 1 < keys; key += 2) {
      __m512 p[2];
#pragma GCC unroll 2
      for (std::size_t k = 0; k < 2; ++k) {
        p[k] = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(from + (key + k) * kStride), times, m));
        sum[k] = _mm512_add_ps(sum[k], p[k]);
      }
      const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]);  // all lower ones, then all upper ones
      _mm512_storeu_si512(to + key / 2 * kStride + c, _mm512_permutexvar_epi16(zip, halves));
    }
    if (key < keys) {
      const __m512 p = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(from + key * kStride), times, m));
      sum[0] = _mm512_add_ps(sum[0], p);
      _mm512_storeu_si512(to + key / 2 * kStride + c, _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(p)));
    }
    _mm512_storeu_ps(largest + c, m);
    _mm512_storeu_ps(total + c, _mm512_add_ps(sum[0], sum[1]));
  }
}

TTTNN_TARGET void slopes(const float* scores, const float* upstream, const float* lse2, const float* delta,
                         float factor, std::size_t columns, bool diagonal, std::uint16_t* p, std::uint16_t* slopes,
                         std::uint32_t* pairs) {
  const __m512 times = _mm512_set1_ps(factor);
  for (std::size_t c = 0; c < columns; c += kWidth) {
    const __m512 shift = _mm512_loadu_ps(lse2 + c);
    const __m512 mean = _mm512_loadu_ps(delta + c);
    const bool masked = diagonal && c == 0;
    for (std::size_t r = 0; r < 16; r += 2) {
      __m256i halves[2];
#pragma GCC unroll 2
      for (std::size_t k = 0; k < 2; ++k) {
        const std::size_t at = (r + k) * kStride + c;
        __m512 value = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), times, shift));
        if (masked) value = _mm512_maskz_mov_ps(static_cast<__mmask16>(0xffffu << (r + k)), value);
        store16(p + at, (__m256i)_mm512_cvtneps_pbh(value));
        // A masked score may be so large that its power is infinite: 0 first, then times.
        value = _mm512_mul_ps(value, _mm512_sub_ps(_mm512_loadu_ps(upstream + at), mean));
        halves[k] = (__m256i)_mm512_cvtneps_pbh(value);
        store16(slopes + at, halves[k]);
      }
      _mm512_storeu_si512(pairs + r / 2 * kStride + c, paired(halves[0], halves[1]));
    }
  }
}

TTTNN_TARGET void narrow(const float* from, float factor, std::uint16_t* to, std::size_t size) {
  const __m512 times = _mm512_set1_ps(factor);
  for (std::size_t i = 0; i < size; i += kWidth)
    store16(to + i, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(from + i), times)));
}

TTTNN_TARGET void add(const float* from, float* to, std::size_t size) {
  for (std::size_t i = 0; i < size; i += kWidth)
    _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(to + i), _mm512_loadu_ps(from + i)));
}

TTTNN_TARGET float dot(const std::uint16_t* a, const std::uint16_t* b, std::size_t size) {
  __m512 sum = _mm512_setzero_ps();
  for (std::size_t i = 0; i < size; i += kWidth) {
    const __m512i x = _mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(a + i)), 16);
    const __m512i y = _mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(b + i)), 16);
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

constexpr AttentionLoops kLoops = {multiply, transpose, pair, softmax, weigh, slopes, narrow, add, dot};

}  // namespace avx512
#endif

}  // namespace

const AttentionLoops kPortableLoops = {portable::multiply, portable::transpose, portable::pair,
                                       portable::softmax,  portable::weigh,     portable::slopes,
                                       portable::narrow,   portable::add,       portable::dot};

const AttentionLoops& avx512_bf16_loops() noexcept {
#if defined(__x86_64__)
  return avx512::kLoops;
#else
  return kPortableLoops;
#endif
}

}  // namespace tttnn
