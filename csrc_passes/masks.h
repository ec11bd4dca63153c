#pragma once
// Which values are part of an attention mask or of what a softmax reads.

#include "program.h"

namespace jitquant {

class Masks {
 public:
  // Whether a sum or another op of the table stays float as part of a mask: softmax and attention
  // alone read its output, and it reads a float value, such as a mask of -inf.
  bool contain(const jit::Node* op);

 private:
  bool isMask(const jit::Value* value);
  bool isMaskAt(const jit::Use& use);

  std::unordered_map<const jit::Value*, bool> known_;  // looked up only
};

}  // namespace jitquant
