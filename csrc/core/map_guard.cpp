#include "map_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace tttnn {

// Never freed, but used again: the handler walks the list while others change it.
struct GuardedRange {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};  // 0: free
  std::atomic<bool> broken{false};
  GuardedRange* next = nullptr;
};

namespace {

std::atomic<GuardedRange*> ranges{nullptr};
std::mutex ranges_mutex;
std::uintptr_t page_bytes = 0;
struct sigaction former;
std::atomic<bool> given_up{false};

GuardedRange* range_of(std::uintptr_t address) {
  for (GuardedRange* range = ranges.load(); range != nullptr; range = range->next) {
    if (address < range->end.load() && address >= range->begin.load()) return range;
  }
  return nullptr;
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  const int reason = errno;
  // A fault has a positive code; what another process sent has none, and no address.
  GuardedRange* range = info->si_code > 0 ? range_of(reinterpret_cast<std::uintptr_t>(info->si_addr)) : nullptr;
  if (range != nullptr) {
    void* page = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(info->si_addr) & ~(page_bytes - 1));
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    // The system call itself, which is safe in a handler: ThreadSanitizer takes mmap for a write to the page, with
    // which every other thread that reads there would race.
    if (::syscall(SYS_mmap, page, page_bytes, PROT_READ, flags, -1, 0) != -1) {
      range->broken.store(true);
      errno = reason;
      return;
    }
  }
  // Not ours: the fault comes again after the return, and is the former handler's. One that hands it back here, as it
  // found ours installed, does so once.
  if (!given_up.exchange(true)) {
    ::sigaction(signal, &former, nullptr);
  } else {
    struct sigaction fatal = {};
    fatal.sa_handler = SIG_DFL;
    ::sigaction(signal, &fatal, nullptr);
  }
  if (info->si_code <= 0) ::raise(signal);
  errno = reason;
}

// At each new map: whoever installs a handler of its own later (Python's faulthandler) would be asked first.
void install() {
  struct sigaction now;
  if (::sigaction(SIGBUS, nullptr, &now) != 0) return;
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_bus_error) return;
  former = now;
  given_up.store(false);
  struct sigaction ours = {};
  ours.sa_sigaction = on_bus_error;
  // On the faulting thread's own stack where it has no other; SA_NODEFER: a former handler may raise it again.
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&ours.sa_mask);
  ::sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace

MapGuard::MapGuard(const void* map, std::size_t size) {
  const std::lock_guard<std::mutex> lock(ranges_mutex);
  if (page_bytes == 0) page_bytes = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  range_ = ranges.load();
  while (range_ != nullptr && range_->end.load() != 0) range_ = range_->next;
  if (range_ == nullptr) {
    range_ = new GuardedRange;
    range_->next = ranges.load();
    ranges.store(range_);
  }
  range_->broken.store(false);
  range_->begin.store(reinterpret_cast<std::uintptr_t>(map));
  range_->end.store(reinterpret_cast<std::uintptr_t>(map) + size);
  install();
}

MapGuard::~MapGuard() {
  const std::lock_guard<std::mutex> lock(ranges_mutex);
  range_->end.store(0);
}

bool MapGuard::broken() const noexcept { return range_->broken.load(std::memory_order_relaxed); }

}  // namespace tttnn
