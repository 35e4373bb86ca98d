// The checksum is XXH64: known values, and the low half that zstd writes at the end of a frame.
#include <codec.h>
#include <store_format.h>

#include <cstring>

#include "store_samples.h"

int main() {
  CHECK(tttnn::checksum64("", 0) == 0xEF46DB3751D8E999ull);
  CHECK(tttnn::checksum64("a", 1) == 0xD24EC4F1A98C6E5Bull);
  CHECK(tttnn::checksum64("abc", 3) == 0x44BC2CF5AD770999ull);
  tttnn::Compressor compressor(1, {});
  samples::Random random{3};
  for (std::size_t size = 0; size < 300; ++size) {
    std::string text;
    for (std::size_t i = 0; i < size; ++i) text += static_cast<char>(random());
    std::vector<unsigned char> frame;
    compressor.append_frame(text, frame);
    std::uint32_t checksum;
    std::memcpy(&checksum, frame.data() + frame.size() - 4, 4);
    CHECK(checksum == static_cast<std::uint32_t>(tttnn::checksum64(text.data(), text.size())));
  }
  std::puts("ok");
}
