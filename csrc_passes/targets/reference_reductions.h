#pragma once
// Parts of targets/reference_source.cpp: functions that sum over the values of a tensor.

namespace jitquant {

extern const char* const kAverages;
extern const char* const kAtenAverages;
extern const char* const kQnnpackAverages;
extern const char* const kNormalizations;

}  // namespace jitquant
