// UTF-8 -> the fixed-width characters of a Python str, without the interpreter: so that many texts are converted at
// once and none of it under the GIL. CPython's own decoder needs the GIL and grows its result as it meets wider
// characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// What must be known of a text before its str is allocated.
struct Utf8Shape {
  std::size_t characters = 0;  // bytes that begin a character
  unsigned char highest = 0;   // the greatest byte

  // The greatest character that the text may hold: for valid UTF-8, one of its own width class.
  std::uint32_t max_character() const noexcept {
    return highest < 0x80 ? 0x7F : highest < 0xC4 ? 0xFF : highest < 0xF0 ? 0xFFFF : 0x10FFFF;
  }
};

inline Utf8Shape shape_of_utf8(const unsigned char* bytes, std::size_t size) noexcept {
  Utf8Shape shape;
  while (size > 0) {
    // Counted in a byte per 128 bytes: the compiler then counts 16 or more at once.
    const std::size_t block = size < 128 ? size : 128;
    unsigned char begins = 0, highest = 0;
    for (std::size_t i = 0; i < block; ++i) {
      begins = static_cast<unsigned char>(begins + ((bytes[i] & 0xC0) != 0x80));
      highest = bytes[i] > highest ? bytes[i] : highest;
    }
    shape.characters += begins;
    if (highest > shape.highest) shape.highest = highest;
    bytes += block;
    size -= block;
  }
  return shape;
}

// Writes shape.characters characters to `out`. False where the bytes are not valid UTF-8 (then `out` is half written).
template <class Character>
bool decode_utf8(const unsigned char* p, std::size_t size, Character* out, std::size_t characters) noexcept {
  const unsigned char* const end = p + size;
  Character* const out_end = out + characters;
  const auto follows = [](unsigned char byte) { return (byte & 0xC0) == 0x80; };
  while (p < end) {
    while (end - p >= 8 && out_end - out >= 8) {
      std::uint64_t word;
      std::memcpy(&word, p, 8);
      for (int i = 0; i < 8; ++i) out[i] = static_cast<Character>(p[i]);
      word &= 0x8080808080808080ull;
      if (word == 0) {
        p += 8;
        out += 8;
        continue;
      }
      const int ascii = __builtin_ctzll(word) / 8;
      p += ascii;
      out += ascii;
      break;
    }
    if (p == end) break;
    if (out == out_end) return false;
    const std::uint32_t first = *p;
    if (first < 0x80) {
      *out++ = static_cast<Character>(first);
      p += 1;
    } else if (first >= 0xC2 && first < 0xE0) {
      if (end - p < 2 || !follows(p[1])) return false;
      *out++ = static_cast<Character>((first & 0x1F) << 6 | (p[1] & 0x3Fu));
      p += 2;
    } else if (first >= 0xE0 && first < 0xF0) {
      if (end - p < 3 || !follows(p[1]) || !follows(p[2])) return false;
      const std::uint32_t c = (first & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
      if (c < 0x800 || (c >= 0xD800 && c < 0xE000)) return false;
      *out++ = static_cast<Character>(c);
      p += 3;
    } else if (first >= 0xF0 && first < 0xF5) {
      if (end - p < 4 || !follows(p[1]) || !follows(p[2]) || !follows(p[3])) return false;
      const std::uint32_t c = (first & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
      if (c < 0x10000 || c > 0x10FFFF) return false;
      *out++ = static_cast<Character>(c);
      p += 4;
    } else {
      return false;
    }
  }
  return out == out_end;
}
