// hnswlib, which builds every graph, as this library includes it.
#pragma once

#include <cstddef>

// hnswlib prefetches where USE_SSE is defined; its prefetch loop reads one link past a full list, which the address
// sanitizer would report. The distance kernels that USE_SSE brings are not used.
#if defined(__SSE__) && !defined(__SANITIZE_ADDRESS__)
#define USE_SSE
#endif
#include <hnswlib/hnswlib.h>

namespace tttnn {

// std::minstd_rand0 has 2147483646 states, and takes seeds 0 and 1 for the same.
inline std::size_t graph_seed(std::size_t seed) { return seed % 2147483646 + 1; }

}  // namespace tttnn
