#pragma once
// Which in-place ops could as well give a tensor of their own, and who would have to read that one.

#include <optional>
#include <vector>

#include "alias.h"

namespace jitquant {

class Writes {
 public:
  Writes(jit::Graph& graph, const jit::Module& module);

  // The reads of the written tensor that run after `write`, an op that writes its first input and
  // returns it: they are to read the result instead. nullopt if others, which cannot, may see what
  // it writes: callers, attributes, views and containers from before, what runs behind a branch or
  // in the next round of a loop.
  std::optional<std::vector<jit::Use>> readsBehind(const jit::Node* write) const;

 private:
  bool isOfThisRun(const jit::Value* value) const;

  Aliases aliases_;
};

}  // namespace jitquant
