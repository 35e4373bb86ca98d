// Documents and files for the text store's tests: the same on every machine.
#pragma once

#include <error.h>
#include <store_reader.h>
#include <store_writer.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "check.h"

namespace samples {

struct Random {
  std::uint64_t state;
  std::uint64_t operator()() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
  std::uint64_t below(std::uint64_t limit) { return (*this)() % limit; }
};

struct Sample {
  std::string text, meta, source;
};

inline std::vector<Sample> documents(std::size_t count, std::uint64_t seed = 1) {
  static const char* const words[] = {"neighbor", "store", "the", "of", "gradient", "text", "and", "\n", "\xc3\xa9"};
  Random random{seed * 0x9E3779B97F4A7C15ull + 1};
  std::vector<Sample> all;
  for (std::size_t i = 0; i < count; ++i) {
    Sample sample;
    const std::size_t length = random.below(i % 50 == 0 ? 3000 : 60);
    for (std::size_t w = 0; w < length; ++w) {
      sample.text += words[random.below(i % 3 == 0 ? 9 : 8)];
      sample.text += std::to_string(random.below(100));
    }
    if (i % 5 != 0) sample.meta = "{\"number\":" + std::to_string(i) + "}";
    if (i % 4 != 0) sample.source = "source " + std::to_string(i % 3);
    all.push_back(sample);
  }
  return all;
}

inline std::string folder() {
  static const std::string path = [] {
    std::string name = (std::filesystem::temp_directory_path() / "tttnn-store-").string() + std::string(6, 'X');
    CHECK(mkdtemp(name.data()) != nullptr);  // writes over the last six letters
    return name;
  }();
  return path;
}

inline tttnn::StoreSummary write(const std::string& path, const std::vector<Sample>& all,
                                 tttnn::WriterOptions options) {
  tttnn::StoreWriter writer(path, options);
  for (const Sample& sample : all) writer.append(sample.text, sample.meta, sample.source);
  return writer.finish();
}

inline std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline void put(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  CHECK(file.good());
}

inline std::string read(const tttnn::StoreReader& reader, std::uint64_t document) {
  const tttnn::TextPlace place = reader.locate(document);
  std::string text(static_cast<std::size_t>(place.text_size), '\0');
  reader.read(place, &text[0]);
  return text;
}

// What came of reading every document of a file: each is either right or refused as damage.
struct Outcome {
  bool opened = false;
  std::size_t right = 0;
  std::size_t refused = 0;
};

inline bool is_damage(const tttnn::Error& error, const std::string& path) {
  const bool kind = error.code() == tttnn::ErrorCode::kStoreCorrupt || error.code() == tttnn::ErrorCode::kStoreVersion;
  return kind && std::string(error.what()).compare(0, path.size(), path) == 0;
}

inline Outcome read_all(const std::string& path, tttnn::FileAccess access, const std::vector<Sample>& expected) {
  Outcome outcome;
  try {
    const tttnn::StoreReader reader(path, access);
    outcome.opened = true;
    CHECK(reader.size() == expected.size());
    for (std::uint64_t i = 0; i < reader.size(); ++i) {
      try {
        CHECK(read(reader, i) == expected[i].text);
        ++outcome.right;
      } catch (const tttnn::Error& error) {
        CHECK(is_damage(error, path));
        ++outcome.refused;
      }
      if (i % 16 != 0) continue;
      try {
        CHECK(reader.meta(i) == expected[i].meta);
      } catch (const tttnn::Error& error) {
        CHECK(is_damage(error, path));
        ++outcome.refused;
      }
    }
    try {
      std::vector<std::int32_t> codes(expected.size());
      reader.source_codes(codes.data());
      for (std::size_t i = 0; i < codes.size(); ++i) {
        const std::string name = codes[i] < 0 ? "" : reader.sources()[static_cast<std::size_t>(codes[i])];
        CHECK(name == expected[i].source);
      }
    } catch (const tttnn::Error& error) {
      CHECK(is_damage(error, path));
      ++outcome.refused;
    }
  } catch (const tttnn::Error& error) {
    CHECK(!outcome.opened);
    CHECK(is_damage(error, path));
  }
  return outcome;
}

}  // namespace samples
