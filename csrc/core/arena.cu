// Copies between blocks on a CUDA device. Plain reference: copy_spans in arena.cpp.
//
// The driver's own device-to-device copy runs at the memory's bandwidth: what a kernel of ours could save is calls, and
// joining spans saves those.
#include "arena.h"
#include "cuda_device.h"

namespace tttnn {

void copy_spans_cuda(void* destination, const void* source, const std::vector<Span>& spans, int device, void* stream) {
  const CudaDevice on(device);
  auto* const to = static_cast<char*>(destination);
  const auto* const from = static_cast<const char*>(source);
  for (std::size_t i = 0; i < spans.size();) {
    const std::size_t begin = spans[i].offset;
    std::size_t end = begin + spans[i].bytes;
    for (++i; i < spans.size() && spans[i].offset == end; ++i) end += spans[i].bytes;
    if (begin == end) continue;
    cuda_check(cudaMemcpyAsync(to + begin, from + begin, end - begin, cudaMemcpyDeviceToDevice,
                               static_cast<cudaStream_t>(stream)),
               "copying weights");
  }
}

}  // namespace tttnn
