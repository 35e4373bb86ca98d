#include "codec.h"

#define ZDICT_STATIC_LINKING_ONLY
#define ZSTD_STATIC_LINKING_ONLY
#include <zdict.h>
#include <zstd.h>

#include <cstring>
#include <new>

#include "error.h"

namespace tttnn {

std::string train_dictionary(const std::vector<std::string_view>& samples, std::size_t capacity, int level) {
  std::string all;
  std::vector<std::size_t> sizes;
  for (const std::string_view sample : samples) {
    if (sample.empty()) continue;
    all.append(sample);
    sizes.push_back(sample.size());
  }
  if (sizes.size() < 8 || capacity < 1024) return {};
  ZDICT_fastCover_params_t parameters;
  std::memset(&parameters, 0, sizeof(parameters));
  // k and d by measurement (benchmarks/records/store.md); fixed, so that training is one deterministic pass.
  parameters.k = 1024;
  parameters.d = 8;
  parameters.f = 20;
  parameters.accel = 1;
  parameters.zParams.compressionLevel = level;
  // The same id for every dictionary: frames do not carry it, and a random one would change the file.
  parameters.zParams.dictID = 1;
  std::string dictionary(capacity, '\0');
  const std::size_t size = ZDICT_trainFromBuffer_fastCover(&dictionary[0], capacity, all.data(), sizes.data(),
                                                           static_cast<unsigned>(sizes.size()), parameters);
  if (ZDICT_isError(size)) return {};
  dictionary.resize(size);
  return dictionary;
}

struct Compressor::State {
  ZSTD_CCtx* context = nullptr;
  ZSTD_CDict* dictionary = nullptr;
  ~State() {
    ZSTD_freeCDict(dictionary);
    ZSTD_freeCCtx(context);
  }
};

Compressor::Compressor(int level, std::string_view dictionary) : state_(new State) {
  state_->context = ZSTD_createCCtx();
  if (state_->context == nullptr) throw std::bad_alloc();
  ZSTD_CCtx_setParameter(state_->context, ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(state_->context, ZSTD_c_contentSizeFlag, 1);
  ZSTD_CCtx_setParameter(state_->context, ZSTD_c_checksumFlag, 1);
  ZSTD_CCtx_setParameter(state_->context, ZSTD_c_dictIDFlag, 0);
  if (!dictionary.empty()) {
    state_->dictionary = ZSTD_createCDict(dictionary.data(), dictionary.size(), level);
    if (state_->dictionary == nullptr) throw std::bad_alloc();
    ZSTD_CCtx_refCDict(state_->context, state_->dictionary);
  }
}

Compressor::~Compressor() = default;
Compressor::Compressor(Compressor&&) noexcept = default;

std::size_t Compressor::append_frame(std::string_view text, std::vector<unsigned char>& out) {
  const std::size_t begin = out.size();
  const std::size_t bound = ZSTD_compressBound(text.size());
  out.resize(begin + bound);
  const std::size_t size =
      ZSTD_compress2(state_->context, out.data() + begin, bound, text.empty() ? "" : text.data(), text.size());
  if (ZSTD_isError(size)) {
    throw Error(ErrorCode::kIo, std::string("zstd cannot compress a text: ") + ZSTD_getErrorName(size));
  }
  out.resize(begin + size);
  return size;
}

struct Decompressor::State {
  ZSTD_DDict* dictionary = nullptr;
  ~State() { ZSTD_freeDDict(dictionary); }
};

Decompressor::Decompressor(std::string_view dictionary) : state_(new State) {
  if (dictionary.empty()) return;
  state_->dictionary = ZSTD_createDDict(dictionary.data(), dictionary.size());
  if (state_->dictionary == nullptr) throw FrameFault{"zstd does not accept the dictionary"};
}

Decompressor::~Decompressor() = default;

std::uint64_t Decompressor::content_size(const unsigned char* frame, std::size_t size, std::uint64_t limit) {
  const unsigned long long claimed = ZSTD_getFrameContentSize(frame, size);
  if (claimed == ZSTD_CONTENTSIZE_ERROR) throw FrameFault{"is not a zstd frame"};
  if (claimed == ZSTD_CONTENTSIZE_UNKNOWN) throw FrameFault{"does not carry its content size"};
  if (claimed > limit) {
    throw FrameFault{"claims " + std::to_string(claimed) + " bytes of text, more than the longest document's " +
                     std::to_string(limit)};
  }
  return claimed;
}

std::size_t Decompressor::frame_size(const unsigned char* frame, std::size_t available) {
  const std::size_t size = ZSTD_findFrameCompressedSize(frame, available);
  if (ZSTD_isError(size)) throw FrameFault{std::string("is not a whole zstd frame: ") + ZSTD_getErrorName(size)};
  return size;
}

namespace {

struct ContextOfThread {
  ZSTD_DCtx* context = ZSTD_createDCtx();
  ~ContextOfThread() { ZSTD_freeDCtx(context); }
};

ZSTD_DCtx* context_of_thread() {
  thread_local ContextOfThread owner;
  if (owner.context == nullptr) throw std::bad_alloc();
  return owner.context;
}

}  // namespace

void Decompressor::decode(const unsigned char* frame, std::size_t size, void* text, std::size_t text_size) const {
  ZSTD_DCtx* context = context_of_thread();
  const std::size_t got = state_->dictionary != nullptr
                              ? ZSTD_decompress_usingDDict(context, text, text_size, frame, size, state_->dictionary)
                              : ZSTD_decompressDCtx(context, text, text_size, frame, size);
  if (ZSTD_isError(got)) throw FrameFault{std::string("cannot be decoded: ") + ZSTD_getErrorName(got)};
  if (got != text_size) {
    throw FrameFault{"holds " + std::to_string(got) + " bytes of text, expected " + std::to_string(text_size)};
  }
}

}  // namespace tttnn
