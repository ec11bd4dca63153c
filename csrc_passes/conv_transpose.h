#pragma once
// Transposed convolutions as convolutions: the geometry, and when it pays.

#include <optional>
#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// A transposed convolution of stride s is a convolution of stride 1 that gives s values for every
// one of its input ("phases"), which are put side by side, and then cut at both ends. All vectors
// have one element per spatial dimension.
struct SubPixel {
  std::vector<int64_t> stride;    // phases
  std::vector<int64_t> taps;      // kernel size of the convolution
  std::vector<int64_t> spacing;   // distance of two weights in the kernel before it is split
  std::vector<int64_t> dilation;  // of the convolution
  std::vector<int64_t> padding;   // of the convolution
  std::vector<int64_t> cut_left;  // rows to drop in front
  std::vector<int64_t> cut_right;
  int64_t groups;

  int64_t phases() const;  // of all dimensions
};

// nullopt where weight or geometry are computed at run time.
std::optional<SubPixel> subPixelForm(const jit::Node* node, const jit::Module& module);

// "" or why this transposed convolution stays one.
std::string whyNotConvolution(const jit::Node* node, const jit::Module& module);

// The weight (out * phases, in / groups, taps...) from (in, out / groups, kernel...). The output
// channels are in the order (groups, phases, out / groups).
at::Tensor subPixelWeight(const at::Tensor& weight, const SubPixel& form);
at::Tensor subPixelBias(const at::Tensor& bias, const SubPixel& form);

}  // namespace jitquant
