#include "build_info.h"

#include <zstd.h>

namespace tttnn {

namespace {

SimdLevel detect() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return SimdLevel::kV4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SimdLevel::kV3;
  if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")) return SimdLevel::kV2;
#endif
  return SimdLevel::kBaseline;
}

}  // namespace

SimdLevel simd_level() noexcept {
  static const SimdLevel level = detect();
  return level;
}

BuildInfo build_info() {
  BuildInfo info;
  info.version = TTTNN_VERSION;
#if defined(__clang__)
  info.compiler = "clang " __clang_version__;
#else
  info.compiler = "gcc " __VERSION__;
#endif
  switch (simd_level()) {
    case SimdLevel::kV4:
      info.simd = "x86-64-v4";
      break;
    case SimdLevel::kV3:
      info.simd = "x86-64-v3";
      break;
    case SimdLevel::kV2:
      info.simd = "x86-64-v2";
      break;
    case SimdLevel::kBaseline:
      info.simd = "baseline";
      break;
  }
  info.zstd = ZSTD_versionString();
  info.hnswlib = "0.8.0";
#if defined(TTTNN_HAS_CUDA)
  info.cuda = true;
#else
  info.cuda = false;
#endif
  return info;
}

}  // namespace tttnn
