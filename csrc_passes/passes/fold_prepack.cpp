// fold_prepack: quantizing and packing of constants happens now, not when the model runs.
//
// Before:
//   %wq = aten::quantize_per_channel(%w, ...); %packed = quantized::conv2d_prepack(%wq, %b, ...)
// After:
//   %packed = GetAttr[name="layer1_0_conv1_packed_params"](%self)
//
// Needs:  freeze, so that weights are constants. Equal packings are kept once.
// Leaves: no prepack op, and no quantize of a constant. Quantizing of what the graph computes, be
// it
//         from constants only, stays.

#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <algorithm>

#include "evaluate.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool isQuantize(const Node* node) {
  return node->kind() == c10::aten::quantize_per_tensor ||
         node->kind() == c10::aten::quantize_per_channel;
}

// Equal for two values that compute the same from the same constants of one graph.
std::string signature(const Value* value) {
  const Node* node = value->node();
  if (node->kind() == c10::prim::Constant || node->inputs().empty()) return value->debugName();
  std::string text = node->kind().toQualString();
  for (const Value* input : node->inputs()) text += "," + signature(input);
  return "(" + text + ")";
}

class Folder {
 public:
  explicit Folder(Program& program) : program_(program), evaluator_(program.module) {}

  void fold(Node* node, const std::string& suffix) {
    if (node->output()->uses().empty() || !isConstant(node->output())) return;
    const auto value = evaluator_.evaluate(node->output());
    if (!value) return;
    std::string& name = names_[node->owningGraph()][signature(node->output())];
    if (name.empty()) {
      std::string wish = modulePath(node);
      std::replace(wish.begin(), wish.end(), '.', '_');
      name = freeAttributeName(program_.module, (wish.empty() ? "" : wish + "_") + suffix);
      program_.module.register_attribute(name, node->output()->type(), *value);
    }
    const jit::WithInsertPoint guard(node);
    jit::Graph& graph = *node->owningGraph();
    Value* read = graph.insertGetAttr(graph.inputs()[0], name);
    read->node()->copyMetadata(node);
    node->output()->replaceAllUsesWith(read);
  }

 private:
  // Whatever else is computed from constants may be written in place afterwards.
  bool isConstant(const Value* value) const {
    if (constantOrAttribute(value, program_.module)) return true;
    const Node* node = value->node();
    const auto inputs = node->inputs();
    return (isQuantize(node) || program_.target->isPrepack(node) ||
            node->kind() == c10::prim::ListConstruct) &&
           std::all_of(inputs.begin(), inputs.end(),
                       [&](const Value* input) { return isConstant(input); });
  }

  Program& program_;
  Evaluator evaluator_;
  std::map<const jit::Graph*, std::map<std::string, std::string>> names_;  // looked up only
};

}  // namespace

void foldPrepack(Program& program) {
  for (Method& method : program.methods) jit::ConstantPooling(method.graph);
  Folder folder(program);
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (program.target->isPrepack(node)) folder.fold(node, "packed_params");
    }
    jit::EliminateDeadCode(method.graph);
    for (Node* node : allNodes(*method.graph)) {
      if (isQuantize(node)) folder.fold(node, "quantized");
    }
    jit::EliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
