#include "adamw_cuda.h"

#include "error.h"

namespace tttnn {

#if !defined(TTTNN_HAS_CUDA)
std::size_t AdamwCuda::scratch_bytes() const noexcept { return 0; }

AdamwStep AdamwCuda::step(const std::vector<AdamwInput>&, double, void*, int, void*) {
  throw Error(ErrorCode::kDevice, "device must be cpu in this build, got cuda. Install a build with CUDA.");
}
#endif

}  // namespace tttnn
