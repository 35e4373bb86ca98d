// What this build is and what the processor it runs on offers.
#pragma once

#include <string>

namespace tttnn {

enum class SimdLevel { kBaseline, kV2, kV3, kV4 };  // x86-64 micro-architecture levels; kBaseline elsewhere

// The level of this processor, found once. Kernels are chosen by it at run time.
SimdLevel simd_level() noexcept;

struct BuildInfo {
  std::string version;
  std::string compiler;
  std::string simd;  // of the processor this runs on
  std::string zstd;
  std::string hnswlib;
  bool cuda;
};

BuildInfo build_info();

}  // namespace tttnn
