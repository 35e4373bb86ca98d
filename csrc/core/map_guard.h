// Maps that survive what the system answers with SIGBUS: a file that was cut short while it was mapped, or a disk that
// cannot give a part of it.
//
// The first guarded map installs a handler for SIGBUS, the one thing of this library that is of the whole process. A
// fault inside a guarded map puts zeros in the place of the page and marks the map; the read goes on, and whoever made
// it asks broken() before its answer is believed. Any other fault is given to the handler that was there before.
// Nothing is unwound, so a fault may come in any code and any thread, that of other libraries included.
//
// What is not seen: a cut within the last page that is kept, whose rest reads as zeros without a fault (checksums and
// sizes find it), and other bytes written in place.
#pragma once

#include <cstddef>

namespace tttnn {

struct GuardedRange;

class MapGuard {
 public:
  // The pages [map, map + size) stay mapped until the guard is gone.
  MapGuard(const void* map, std::size_t size);
  ~MapGuard();
  MapGuard(const MapGuard&) = delete;
  MapGuard& operator=(const MapGuard&) = delete;

  // Whether a page could not be read and reads as zeros since then.
  bool broken() const noexcept;

 private:
  GuardedRange* range_;
};

}  // namespace tttnn
