#pragma once
// Attributes for what is computed from constants, one for all equal computations of all methods.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evaluate.h"
#include "program.h"

namespace jitquant {

class ConstantFolder {
 public:
  explicit ConstantFolder(Program& program) : program_(program) {}

  // Packing of constant weights.
  void foldPrepacks(Method& method);
  // Quantizing of constants.
  void foldQuantizes(Method& method);

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
  std::optional<Evaluator> evaluator_;  // of one method, whose values no longer change
  // All looked up only.
  std::map<std::string, std::string> names_;
  std::map<std::string, std::vector<at::Tensor>> tensors_;  // by hash, those that differ
  std::map<std::string, at::Tensor> copies_;
};

}  // namespace jitquant
