#include "io_error.h"

#include <cerrno>
#include <cstring>

namespace tttnn {

Error io_error(const std::string& path, const char* what, int reason) {
  std::string message = path + ": " + what + ": " + strerror(reason);
  switch (reason) {
    case ENOSPC:
    case EDQUOT:
      message += ". Free some space and run the same command again.";
      break;
    case EMFILE:
      message += ". Raise the limit of open files with: ulimit -n";
      break;
    case EFBIG:
      message += ". Raise the limit of a file's size with: ulimit -f";
      break;
    default:
      break;
  }
  return Error(reason == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo, message);
}

bool is_missing_service(int reason) noexcept {
  return reason == EINVAL || reason == ENOTSUP || reason == EOPNOTSUPP || reason == ENOSYS || reason == ENOLCK;
}

}  // namespace tttnn
