// Many threads on one reader, with batches on the shared pool beside them. Run it under ThreadSanitizer.
#include <parallel.h>

#include <atomic>
#include <cstdio>
#include <thread>

#include "store_samples.h"

namespace {

void work(const tttnn::StoreReader& reader, const std::vector<samples::Sample>& documents, std::uint64_t seed) {
  samples::Random random{seed * 77 + 1};
  for (int round = 0; round < 40; ++round) {
    std::vector<std::int64_t> ids;
    for (int i = 0; i < 200; ++i) ids.push_back(static_cast<std::int64_t>(random.below(documents.size())));
    std::vector<tttnn::TextPlace> places(ids.size());
    reader.locate(ids.data(), ids.size(), places.data());
    std::vector<std::string> texts;
    std::vector<void*> targets;
    for (const tttnn::TextPlace& place : places) texts.emplace_back(static_cast<std::size_t>(place.text_size), '\0');
    for (std::string& text : texts) targets.push_back(&text[0]);
    tttnn::shared_pool().run(targets.size(), [&](std::size_t i) { reader.read(places[i], targets[i]); }, round % 3);
    for (std::size_t i = 0; i < ids.size(); ++i) CHECK(texts[i] == documents[static_cast<std::size_t>(ids[i])].text);
    const std::uint64_t id = random.below(documents.size());
    CHECK(samples::read(reader, id) == documents[id].text);
    CHECK(reader.meta(id) == documents[id].meta);
  }
}

}  // namespace

int main() {
  const std::vector<samples::Sample> documents = samples::documents(3000);
  const std::string path = samples::folder() + "/texts.zst";
  std::string whole;
  for (const int threads : {1, 2, 8}) {
    tttnn::WriterOptions options;
    options.threads = threads;
    options.dictionary_bytes = 8192;
    samples::write(path, documents, options);
    const std::string bytes = samples::bytes_of(path);
    CHECK(whole.empty() || whole == bytes);
    whole = bytes;
  }
  for (const tttnn::FileAccess access : {tttnn::FileAccess::kMmap, tttnn::FileAccess::kPread}) {
    const tttnn::StoreReader reader(path, access);
    std::vector<std::thread> threads;
    for (std::uint64_t seed = 0; seed < 8; ++seed) threads.emplace_back([&, seed] { work(reader, documents, seed); });
    for (std::thread& thread : threads) thread.join();
    reader.verify(true, nullptr);
  }
  std::puts("ok");
}
