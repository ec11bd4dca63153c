#pragma once
// Runs single nodes of a graph outside the interpreter.

#include <unordered_map>

#include "program.h"

namespace jitquant {

// Whether an op gives the same each time, and changes nothing. No instruction of the interpreter,
// such as prim::ListConstruct, is an op.
bool isPure(const jit::Node* node);

// Values by graph value. `evaluate` computes a value from those given, constants and attributes,
// and keeps what it computes; nullopt where it would need anything else (an input of the graph, a
// value of a loop).
class Evaluator {
 public:
  explicit Evaluator(const jit::Module& module) : module_(module) {}

  void set(const jit::Value* value, at::IValue result) { known_[value] = std::move(result); }
  std::optional<at::IValue> evaluate(const jit::Value* value);
  // Runs an op that writes one of its inputs in place; false where an input cannot be evaluated.
  bool run(const jit::Node* writer);

 private:
  std::optional<jit::Stack> argumentsOf(const jit::Node* node);
  std::optional<at::IValue> compute(const jit::Value* value);

  const jit::Module& module_;
  std::unordered_map<const jit::Value*, at::IValue> known_;  // looked up only
};

}  // namespace jitquant
