// The only exception the core throws. Codes are a closed set; bindings/errors.cpp maps each to a Python class.
#pragma once

#include <stdexcept>
#include <string>

namespace tttnn {

enum class ErrorCode {
  kInvalidArgument,  // ValueError
  kOutOfRange,       // IndexError
  kNotFound,         // FileNotFoundError
  kIo,               // OSError: the operating system refused; the message carries its reason
  kStoreCorrupt,     // StoreCorruptError
  kStoreVersion,     // StoreVersionError
  kIndexCorrupt,     // IndexCorruptError
  kEmbedding,        // EmbeddingError
  kRestore,          // RestoreError
  kNonFinite,        // NonFiniteLossError
  kDevice,           // DeviceError
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace tttnn
