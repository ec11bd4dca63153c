#pragma once
// Ops of a model that were int8 before it came here. They stay as they are.

#include <unordered_set>

#include "program.h"

namespace jitquant {

class Int8Before {
 public:
  explicit Int8Before(jit::Graph& graph);

  bool isInt8(const jit::Value* value) const { return values_.count(value) != 0; }
  // Whether the op computes with int8 weights or on int8 values.
  bool isInt8(const jit::Node* op) const { return ops_.count(op) != 0; }

 private:
  void follow(const jit::Node* node);

  // Looked up, never iterated.
  std::unordered_set<const jit::Value*> values_;
  std::unordered_set<const jit::Node*> ops_;
};

}  // namespace jitquant
