// Shared memory: what was written is read through every descriptor, nobody changes it, and a stray write stays at home.
#include <arena.h>
#include <error.h>
#include <fcntl.h>
#include <shared_memory.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "check.h"

namespace {

using namespace tttnn;

template <typename Call>
bool refused(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInvalidArgument;
  }
  return false;
}

}  // namespace

int main() {
  const std::size_t size = 3 * 4096 + 77;
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);

  auto memory = std::make_unique<SharedMemory>(size);
  CHECK(refused([&] { Block early(*memory); }));
  CHECK(refused([&] { SharedMemory early(memory->descriptor(), size); }));
  memory->write(0, bytes.data(), 5000);
  memory->write(5000, bytes.data() + 5000, size - 5000);
  memory->write(size, bytes.data(), 0);
  CHECK(refused([&] { memory->write(size - 1, bytes.data(), 2); }));
  CHECK(refused([&] { memory->write(size + 1, bytes.data(), 0); }));
  memory->seal();
  memory->seal();
  CHECK(refused([&] { memory->write(0, bytes.data(), 1); }));
  CHECK(pwrite(memory->descriptor(), "x", 1, 0) < 0);
  CHECK(ftruncate(memory->descriptor(), 1) < 0);
  CHECK(ftruncate(memory->descriptor(), static_cast<off_t>(size) + 1) < 0);
  CHECK(mmap(nullptr, size, PROT_WRITE, MAP_SHARED, memory->descriptor(), 0) == MAP_FAILED);

  CHECK(refused([&] { SharedMemory other(memory->descriptor(), size + 1); }));
  CHECK(refused([&] { SharedMemory other(-1, size); }));
  const int plain = open("/dev/null", O_RDONLY);
  CHECK(refused([&] { SharedMemory other(plain, 0); }));
  close(plain);

  // Through a second descriptor, after the first is gone; a mapping outlives all of them.
  auto second = std::make_unique<SharedMemory>(memory->descriptor(), size);
  CHECK(second->descriptor() != memory->descriptor());
  memory.reset();
  Block mine(*second);
  Block other(*second);
  second.reset();
  CHECK(mine.size() == size);
  CHECK(std::memcmp(mine.data(), bytes.data(), size) == 0);

  // Another process reads the same bytes, and its writes are its own.
  const pid_t child = fork();
  if (child == 0) {
    const bool same = std::memcmp(mine.data(), bytes.data(), size) == 0;
    mine.data()[4096] ^= std::byte{1};
    _exit(same ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  mine.data()[8192] ^= std::byte{1};
  CHECK(std::memcmp(mine.data(), bytes.data(), size) != 0);
  CHECK(std::memcmp(other.data(), bytes.data(), size) == 0);

  SharedMemory empty(0);
  empty.seal();
  Block nothing(empty);
  CHECK(nothing.size() == 0 && nothing.data() != nullptr);
  return 0;
}
