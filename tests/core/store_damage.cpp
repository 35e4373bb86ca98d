// Damage of every kind: each read gives the right text or an error that names the file, never another text, never a
// crash. Run it under AddressSanitizer and UndefinedBehaviorSanitizer. An argument is a number of random mutations.
#include <store_repair.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>

#include "store_samples.h"

using samples::Outcome;
using samples::Random;
using tttnn::FileAccess;

namespace {

std::vector<samples::Sample> documents;
std::string original;
std::string damaged_path;

Outcome try_bytes(const std::string& bytes, FileAccess access = FileAccess::kMmap) {
  samples::put(damaged_path, bytes);
  return samples::read_all(damaged_path, access, documents);
}

// Every byte of header, dictionary edge, tables and footer, each with several masks.
void flip_structure(const tttnn::Footer& footer, const tttnn::Header& header) {
  std::vector<std::size_t> places;
  const auto add = [&](std::uint64_t begin, std::uint64_t end, std::uint64_t step) {
    for (std::uint64_t at = begin; at < end; at += step) places.push_back(static_cast<std::size_t>(at));
  };
  add(0, header.dictionary_offset, 1);
  add(header.dictionary_offset, header.data_begin, 101);
  add(footer.index_offset - 16, footer.index_offset, 1);
  // All bytes of the last page, and a sample of the pages before it: their code is the same.
  add(footer.index_offset, footer.index_offset + (footer.index_pages - 1) * tttnn::kPageBytes, 61);
  add(footer.sources_offset - tttnn::kPageBytes, original.size(), 1);
  std::size_t silent = 0;
  Random random{7};
  for (const std::size_t at : places) {
    std::string bytes = original;
    bytes[at] = static_cast<char>(bytes[at] ^ (1u << random.below(8)));
    const Outcome outcome = try_bytes(bytes, random.below(4) == 0 ? FileAccess::kPread : FileAccess::kMmap);
    if (outcome.opened && outcome.refused == 0) ++silent;
  }
  std::printf("structure: %zu flips, %zu without effect on any answer\n", places.size(), silent);
  // Only the marks of skippable frames around dictionary and pages are never looked at.
  CHECK(silent <= 32);
}

void flip_texts(const tttnn::Footer& footer, std::size_t count) {
  Random random{11};
  std::size_t refused = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::string bytes = original;
    const std::size_t at =
        static_cast<std::size_t>(footer.data_begin + random.below(footer.data_end - footer.data_begin));
    bytes[at] = static_cast<char>(bytes[at] ^ (1 + random.below(255)));
    const Outcome outcome = try_bytes(bytes);
    CHECK(outcome.opened);
    if (outcome.refused > 0) ++refused;
  }
  std::printf("texts: %zu flips, %zu noticed while reading\n", count, refused);
  CHECK(refused > count / 2);
}

void truncate_everywhere() {
  for (std::size_t size = 0; size < original.size(); size += 512) {
    CHECK(!try_bytes(original.substr(0, size)).opened);
    CHECK(!try_bytes(original.substr(size + 1)).opened);
  }
  for (std::size_t cut = 1; cut < 200; ++cut) CHECK(!try_bytes(original.substr(0, original.size() - cut)).opened);
  CHECK(!try_bytes(original + "x").opened);
  CHECK(!try_bytes(original + original).opened);
}

void foreign_files() {
  CHECK(!try_bytes("").opened);
  CHECK(!try_bytes("{\"text\": \"a line\"}\n").opened);
  CHECK(!try_bytes(std::string(100000, '\0')).opened);
  CHECK(!try_bytes(std::string(100000, '\xff')).opened);
  CHECK(!try_bytes(original.substr(0, 128) + std::string(5000, 'x') + original.substr(original.size() - 160)).opened);
}

// Checksums made right again after a change: only the bounds protect the reader then, and zstd's own checks.
void forge(std::size_t count, const tttnn::Footer& footer) {
  Random random{13};
  const auto seal = [](std::string& bytes, std::size_t begin, std::size_t size, std::uint64_t seed) {
    const std::uint64_t checksum = tttnn::checksum64(bytes.data() + begin, size - 8, seed);
    std::copy_n(reinterpret_cast<const char*>(&checksum), 8, bytes.begin() + static_cast<long>(begin + size - 8));
  };
  for (std::size_t i = 0; i < count; ++i) {
    std::string bytes = original;
    for (std::uint64_t change = 0; change <= random.below(3); ++change) {
      const char value = static_cast<char>(random.below(2) == 0 ? random() : (random.below(2) == 0 ? 0xFF : 0));
      switch (random.below(4)) {
        case 0: {
          const std::size_t page = static_cast<std::size_t>(random.below(footer.index_pages));
          const std::size_t begin = static_cast<std::size_t>(footer.index_offset) + page * tttnn::kPageBytes;
          bytes[begin + random.below(tttnn::kPageBytes - 8)] = value;
          seal(bytes, begin, tttnn::kPageBytes, footer.store_id.low + page);
          break;
        }
        case 1:
          bytes[bytes.size() - tttnn::kFooterBytes + 24 + random.below(128)] = value;
          seal(bytes, bytes.size() - tttnn::kFooterBytes, tttnn::kFooterBytes, 0);
          break;
        case 2:
          bytes[static_cast<std::size_t>(footer.sources_offset + random.below(footer.sources_size - 8))] = value;
          seal(bytes, static_cast<std::size_t>(footer.sources_offset), static_cast<std::size_t>(footer.sources_size),
               0);
          break;
        default:
          bytes[static_cast<std::size_t>(footer.data_begin + random.below(footer.data_end - footer.data_begin))] =
              value;
      }
    }
    samples::put(damaged_path, bytes);
    // A forged table may name another document: here only crashes and foreign errors count.
    try {
      const tttnn::StoreReader reader(damaged_path, random.below(2) == 0 ? FileAccess::kMmap : FileAccess::kPread);
      for (std::uint64_t document = 0; document < std::min<std::uint64_t>(reader.size(), 100); ++document) {
        const std::uint64_t id = random.below(reader.size());
        try {
          samples::read(reader, id);
          reader.meta(id);
        } catch (const tttnn::Error& error) {
          CHECK(samples::is_damage(error, damaged_path));
        }
      }
    } catch (const tttnn::Error& error) {
      CHECK(samples::is_damage(error, damaged_path));
    }
    // A resume from forged bytes ends in an error or a store, too.
    if (i % 8 == 0) {
      samples::put(damaged_path + ".partial", bytes.substr(0, static_cast<std::size_t>(footer.data_end)));
      try {
        tttnn::WriterOptions options;
        options.resume = true;
        options.dictionary_bytes = 4096;
        options.commit_bytes = 20000;
        samples::write(damaged_path, documents, options);
      } catch (const tttnn::Error& error) {
        CHECK(std::string(error.what()).find(damaged_path) == 0);
      }
    }
  }
}

// A repair of anything ends in an error or in a store that verifies and holds only right texts.
void repair(std::size_t count) {
  Random random{17};
  std::size_t written = 0, lost = 0;
  const std::string target = damaged_path + ".repaired";
  for (std::size_t i = 0; i < count; ++i) {
    std::string bytes = original;
    for (std::uint64_t change = 0; change <= random.below(4); ++change) {
      const std::size_t at = static_cast<std::size_t>(random.below(bytes.size()));
      const std::size_t size = std::min<std::size_t>(bytes.size() - at, random.below(2) == 0 ? 1 : random.below(6000));
      for (std::size_t k = at; k < at + size; ++k) bytes[k] = static_cast<char>(random());
    }
    if (random.below(4) == 0) bytes.resize(static_cast<std::size_t>(random.below(bytes.size())));
    samples::put(damaged_path, bytes);
    try {
      const tttnn::RepairReport report = tttnn::repair_store(damaged_path, target, 2, nullptr);
      const tttnn::StoreReader reader(target, FileAccess::kMmap);
      reader.verify(true, nullptr);
      CHECK(reader.size() <= documents.size());
      for (std::uint64_t id = 0; id < reader.size(); ++id) {
        const std::string text = samples::read(reader, id);
        const bool is_lost = std::binary_search(report.lost_texts.begin(), report.lost_texts.end(), id);
        CHECK(is_lost ? text.empty() && reader.meta(id) == tttnn::kLostMeta : text == documents[id].text);
      }
      ++written;
      lost += report.lost_texts.size();
    } catch (const tttnn::Error& error) {
      CHECK(samples::is_damage(error, damaged_path));
    }
  }
  std::printf("repair: %zu files, %zu repaired, %zu texts lost\n", count, written, lost);
}

void future_versions() {
  std::string bytes = original;
  bytes[16] = 2;
  const std::uint64_t checksum = tttnn::checksum64(bytes.data(), tttnn::kHeaderBytes - 8);
  std::copy_n(reinterpret_cast<const char*>(&checksum), 8, bytes.begin() + tttnn::kHeaderBytes - 8);
  samples::put(damaged_path, bytes);
  try {
    const tttnn::StoreReader reader(damaged_path, FileAccess::kMmap);
    CHECK(false);
  } catch (const tttnn::Error& error) {
    CHECK(error.code() == tttnn::ErrorCode::kStoreVersion);
  }
}

}  // namespace

int main(int arguments, char** values) {
  const std::size_t mutations = arguments > 1 ? std::strtoul(values[1], nullptr, 10) : 1500;
  const std::string path = samples::folder() + "/texts.zst";
  damaged_path = samples::folder() + "/damaged.zst";
  documents = samples::documents(700);
  tttnn::WriterOptions options;
  options.dictionary_bytes = 4096;
  options.commit_bytes = 20000;
  samples::write(path, documents, options);
  original = samples::bytes_of(path);
  const tttnn::StoreReader reader(path, FileAccess::kMmap);
  CHECK(reader.footer().index_pages == 2);
  CHECK(reader.header().dictionary_size > 0);
  const Outcome outcome = samples::read_all(path, FileAccess::kPread, documents);
  CHECK(outcome.opened && outcome.right == documents.size() && outcome.refused == 0);
  reader.verify(true, nullptr);
  std::printf("store of %zu bytes\n", original.size());

  flip_structure(reader.footer(), reader.header());
  flip_texts(reader.footer(), mutations);
  truncate_everywhere();
  foreign_files();
  future_versions();
  forge(mutations, reader.footer());
  repair(mutations / 5);
  std::puts("ok");
}
