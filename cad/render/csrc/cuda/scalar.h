// volume.h on single numbers: a thread of a GPU, or a plain loop on a CPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "../volume.h"

namespace cad {

template <> CAD_HD float every<float>(float value) { return value; }
template <> CAD_HD int whole<float, int>(float x) { return static_cast<int>(x); }
template <> CAD_HD float real<float, int>(int x) { return static_cast<float>(x); }

template <> CAD_HD float power_of_two<float>(float shifted) {
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  memcpy(&shifted, &bits, sizeof bits);
  return shifted;
}

template <> CAD_HD float rounded<float>(float x) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(x, 0.f);  // a sum that names its rounding is never fused with what is before it
#else
  asm("" : "+m"(x));
  return x;
#endif
}

template <> CAD_HD float reciprocal<float>(float x) {
#ifdef __CUDA_ARCH__
  float found;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));  // errs by one unit in the last place
  return found;
#else
  return 1.f / x;
#endif
}

#ifdef __CUDA_ARCH__
// By the unit for special functions, which works beside the others: relative error below 3e-7 + 6e-8 |x|.
template <> CAD_HD float exponential<float>(float x) { return __expf(x); }
#endif

}  // namespace cad
