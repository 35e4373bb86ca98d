#include "shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "error.h"
#include "io_error.h"

namespace tttnn {

namespace {

#if defined(MFD_ALLOW_SEALING) && defined(F_ADD_SEALS)

// F_SEAL_SEAL keeps a descriptor's holder from adding seals of its own.
constexpr int kSeals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

[[noreturn]] void refuse(std::size_t bytes, const char* what) {
  throw io_error("shared memory of " + std::to_string(bytes) + " bytes", what, errno);
}

#endif

}  // namespace

#if defined(MFD_ALLOW_SEALING) && defined(F_ADD_SEALS)

SharedMemory::SharedMemory(std::size_t bytes) : size_(bytes) {
  descriptor_ = ::memfd_create("tttnn-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor_ < 0) refuse(bytes, "cannot be made");
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) {
    const int reason = errno;
    ::close(descriptor_);
    errno = reason;
    refuse(bytes, "cannot be sized");
  }
}

SharedMemory::SharedMemory(int descriptor, std::size_t bytes) : size_(bytes), sealed_(true) {
  struct stat status;
  if (::fstat(descriptor, &status) != 0)
    throw Error(ErrorCode::kInvalidArgument,
                "descriptor of shared memory must be open, got " + std::to_string(descriptor) + ": " + strerror(errno));
  if (status.st_size < 0 || static_cast<std::size_t>(status.st_size) != bytes)
    throw Error(ErrorCode::kInvalidArgument,
                "shared memory must have " + std::to_string(bytes) + " bytes, got " + std::to_string(status.st_size));
  const int seals = ::fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals)
    throw Error(ErrorCode::kInvalidArgument, "shared memory must be sealed, but descriptor " +
                                                 std::to_string(descriptor) + " is of something that can still change");
  descriptor_ = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (descriptor_ < 0) refuse(bytes, "cannot be opened once more");
}

SharedMemory::~SharedMemory() { ::close(descriptor_); }

void SharedMemory::write(std::size_t offset, const void* data, std::size_t bytes) {
  if (sealed_) throw Error(ErrorCode::kInvalidArgument, "shared memory must not be written after it was sealed");
  if (offset > size_ || bytes > size_ - offset)
    throw Error(ErrorCode::kInvalidArgument, "write must end within the shared memory (" + std::to_string(size_) +
                                                 " bytes), got offset " + std::to_string(offset) + " and size " +
                                                 std::to_string(bytes));
  // Written, not mapped: a writable mapping would have to be gone before the memory can be sealed.
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pwrite(descriptor_, from, bytes, static_cast<off_t>(offset));
    if (done < 0) {
      if (errno == EINTR) continue;
      refuse(size_, "cannot be filled");
    }
    from += done;
    offset += static_cast<std::size_t>(done);
    bytes -= static_cast<std::size_t>(done);
  }
}

void SharedMemory::seal() {
  if (sealed_) return;
  if (::fcntl(descriptor_, F_ADD_SEALS, kSeals) != 0) refuse(size_, "cannot be sealed");
  sealed_ = true;
}

#else

SharedMemory::SharedMemory(std::size_t) {
  throw Error(ErrorCode::kIo, "shared weights need Linux's memfd, which this system has not");
}
SharedMemory::SharedMemory(int, std::size_t bytes) : SharedMemory(bytes) {}
SharedMemory::~SharedMemory() = default;
void SharedMemory::write(std::size_t, const void*, std::size_t) {}
void SharedMemory::seal() {}

#endif

}  // namespace tttnn
