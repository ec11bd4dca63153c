#pragma once
// Convolutions whose channels can be arranged anew or be more, without a copy of any activation.

#include <optional>
#include <vector>

#include "program.h"

namespace jitquant {

// The convolution of one group that gives the channels of `value`, and nothing else reads: behind
// ops that treat every channel alike. Null where there is none, or where its weight is computed at
// run time or left float. Appends the values from `value` to its output to `between`.
jit::Node* channelGiver(jit::Value* value, const jit::Module& module,
                        std::vector<jit::Value*>* between = nullptr);

// What is around a grouped convolution: a convolution that can give further channels, and
// convolutions that can ignore further ones. Both are of one group.
struct GroupNeighbours {
  jit::Node* giver;
  std::vector<jit::Node*> takers;
  std::vector<jit::Value*> inputs;   // from the giver to the convolution
  std::vector<jit::Value*> outputs;  // from the convolution to the takers
};

// nullopt where something else reads or gives these channels, or where a weight is computed at run
// time or left float.
std::optional<GroupNeighbours> groupNeighbours(const jit::Node* conv, const jit::Module& module);

}  // namespace jitquant
