#pragma once
// Attributes for what is computed from constants, one for all equal computations.

#include <map>
#include <string>
#include <vector>

#include "evaluate.h"
#include "program.h"

namespace jitquant {

class ConstantFolder {
 public:
  ConstantFolder(Program& program, Method& method)
      : program_(program), method_(method), evaluator_(program.module) {}

  // Packing of constant weights.
  void foldPrepacks();
  // Quantizing of constants.
  void foldQuantizes();

 private:
  // Replaces a node by the read of an attribute of the top module, named by the node's module path
  // and `suffix`, where its inputs are constants, or packed or quantized ones.
  void fold(jit::Node* node, const std::string& suffix);
  void copyInputs(const jit::Node* prepack);
  bool isConstant(const jit::Value* value) const;
  // Equal for two values that compute the same from equal constants.
  std::string signature(const jit::Value* value);
  static std::string signatureOf(const at::IValue& constant);
  // The first tensor that equals this one, and a text that only those that equal it have.
  std::pair<std::string, at::Tensor> firstOfItsKind(const at::Tensor& tensor);

  Program& program_;
  Method& method_;
  Evaluator evaluator_;
  // All looked up only.
  std::map<std::string, std::string> names_;
  std::map<std::string, std::vector<at::Tensor>> tensors_;  // by hash, those that differ
  std::map<std::string, at::Tensor> copies_;
};

}  // namespace jitquant
