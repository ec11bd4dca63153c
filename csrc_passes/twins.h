#pragma once
// Values that torch may take for one when it runs a model.

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace jitquant {

// The interpreter merges ops of equal inputs (EliminateCommonSubexpression), and fold_prepack
// merges equal weights. Twins are all values that may be merged so: those of equal kinds of ops,
// whose inputs are the same value or twins. Tensors that are constants all count as equal.
class Twins {
 public:
  explicit Twins(jit::Graph& graph);

  bool hasTwin(const jit::Value* value) const { return counts_.at(numbers_.at(value)) > 1; }
  // A value that was inserted since, in place of that one.
  void set(const jit::Value* value, const jit::Value* like) { numbers_[value] = numbers_.at(like); }

 private:
  std::string signatureOf(const jit::Node* node) const;
  void number(const jit::Value* value, const std::string& signature);

  std::map<std::string, size_t> known_;
  std::unordered_map<const jit::Value*, size_t> numbers_;  // looked up only
  std::vector<size_t> counts_;
};

}  // namespace jitquant
