// Copies that bypass the cache, for memory that is written whole and not read again soon: the line is not fetched
// first, which saves a third of the traffic of a copy.
#pragma once

#include <cstddef>

namespace tttnn {

// Copies `bytes` from source to destination, which must not overlap; any alignment. Other threads see what was written
// after the writer has called stream_fence() and synchronised with them as usual.
using Stream = void (*)(void* destination, const void* source, std::size_t bytes);

// The best for this processor; memcpy where it has no such stores.
Stream stream_copy() noexcept;

// Orders the stores of all Stream calls of this thread before its later ones. Slow: once per task, not per copy.
void stream_fence() noexcept;

}  // namespace tttnn
