#pragma once
// Which layers read which weight, in all methods of a program.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace jitquant {

// The attribute or constant that holds a tensor: one identity, however many paths lead to it.
using Identity = std::pair<const void*, std::string>;
Identity identityOf(const jit::Value* value, const jit::Module& module);

// Whether two layers read one bias, or both none.
bool haveOneBias(const jit::Node* a, const jit::Node* b, const jit::Module& module);

// The layers that read one weight.
struct WeightUses {
  std::vector<jit::Node*> layers;
  std::vector<jit::Graph*> graphs;  // of each layer
};

class WeightReaders {
 public:
  explicit WeightReaders(const Program& program);

  // One entry for each weight, in graph order.
  const std::vector<WeightUses>& weights() const { return weights_; }

  // Whether anything but these layers, in its place, reads the weight or bias of the first.
  bool hasOthers(const WeightUses& uses) const;

 private:
  const jit::Module& module_;
  std::vector<WeightUses> weights_;
  std::map<Identity, std::vector<jit::Use>> readers_;  // looked up only
};

// Lets the layers read another tensor as their weight (input 1) or bias (input 2), which they
// share: in the attribute that they read, or in a new one.
void setSharedInput(const WeightUses& uses, size_t input, const at::Tensor& value,
                    const jit::Module& module);

}  // namespace jitquant
