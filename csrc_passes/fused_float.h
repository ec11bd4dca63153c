#pragma once

#include <cstdint>

namespace jitquant {

// A decision like kLeftFloat, but with BatchNorm and padding folded as if the op were to be int8.
// Records say kLeftFloat of it.
inline constexpr int64_t kFusedFloat = -6;

}  // namespace jitquant
