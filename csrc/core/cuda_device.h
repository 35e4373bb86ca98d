// What every caller of the CUDA runtime here needs: checked calls, and the device that a stream belongs to.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "error.h"

namespace tttnn {

inline void cuda_check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw Error(ErrorCode::kDevice, std::string(what) + " failed on the CUDA device: " + cudaGetErrorString(status));
}

// Makes a device this thread's own until the end of the block, then the one that was.
class CudaDevice {
 public:
  explicit CudaDevice(int device) {
    cuda_check(cudaGetDevice(&before_), "finding the current device");
    cuda_check(cudaSetDevice(device), "choosing the device");
  }
  ~CudaDevice() { cudaSetDevice(before_); }
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

 private:
  int before_ = 0;
};

}  // namespace tttnn
