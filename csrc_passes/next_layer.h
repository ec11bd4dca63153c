#pragma once
// The layer behind a layer, where a factor of each channel may move from one to the other.

#include <vector>

#include "program.h"

namespace jitquant {

struct NextLayer {
  jit::Node* layer = nullptr;      // null: there is none
  std::vector<jit::Node*> bounds;  // activations on the way that clip at another value than 0
};

// Follows the channels that a layer gives, through ops f with f(s * x) = s * f(x) for each channel
// and s > 0, to the one layer that takes them as its channels. Every value on the way has one
// reader, besides ops that read its shape only.
NextLayer nextLayer(const jit::Node* layer, const jit::Module& module);

// Whether an op reads no values of its tensors.
bool readsOnlyShape(const jit::Node* node);

// Whether an op pads with zeros, and does nothing else.
bool padsWithZero(const jit::Node* node);

}  // namespace jitquant
