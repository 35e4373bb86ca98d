// Copies that bypass the cache, for memory that is written whole and not read again soon: the line is not fetched
// first, which saves a third of the traffic of a copy.
#pragma once

#include <cstddef>

namespace tttnn {

// Copies `bytes` from source to destination, which must not overlap; any alignment. What was written is visible to
// other threads once the call returns and they synchronise with the caller as usual.
using Stream = void (*)(void* destination, const void* source, std::size_t bytes);

// The best for this processor; memcpy where it has no such stores.
Stream stream_copy() noexcept;

}  // namespace tttnn
