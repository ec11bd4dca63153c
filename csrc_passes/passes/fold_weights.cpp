// fold_weights: weights that are computed from constants are computed once.
//
// Before:
//   %wq, %wk, %wv = aten::chunk(%in_proj_weight, %three, %zero); %q = aten::linear(%x, %wq, %bq)
//   %w = aten::_weight_norm(%v, %g, %zero); %c = aten::conv1d(%y, %w, %b, ...)
// After:
//   %q = aten::linear(%x, self.in_proj_weight_folded, %bq)
//   %c = aten::conv1d(%y, self.v_folded, %b, ...)
//
// Needs:  functionalize and own_state, so that attributes that change are marked.
// Leaves: what a random op, an input or an attribute that changes has part in. Transposed matrices,
//         which canonicalize_linear reads as they are.

#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <map>

#include "alias.h"
#include "evaluate.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// The inputs that hold weights, by op.
const std::map<std::string, std::vector<size_t>>& weightInputs() {
  static const auto* const inputs = new std::map<std::string, std::vector<size_t>>{
      {"aten::linear", {1, 2}},           {"aten::_convolution", {1, 2}},
      {"aten::conv1d", {1, 2}},           {"aten::conv2d", {1, 2}},
      {"aten::conv3d", {1, 2}},           {"aten::conv_transpose1d", {1, 2}},
      {"aten::conv_transpose2d", {1, 2}}, {"aten::conv_transpose3d", {1, 2}},
      {"aten::batch_norm", {1, 2, 3, 4}}};
  return *inputs;
}

bool isPure(const Node* node) {
  const bool arranges =
      node->kind() == c10::prim::ListConstruct || node->kind() == c10::prim::ListUnpack;
  if (arranges) return true;
  if (!node->kind().is_aten() || !node->blocks().empty()) return false;
  const auto* schema = node->maybeSchema();
  return schema != nullptr && !schema->is_mutable() && !node->hasSideEffects() &&
         !node->isNondeterministic();
}

// Whether a value is the same in every run, and the path of the first attribute that it is made of.
class Constancy {
 public:
  Constancy(const Method& method, const jit::Module& module)
      : module_(module), aliases_(*method.graph, module) {}

  bool isConstant(const Value* value) {
    const auto known = known_.find(value);
    if (known != known_.end()) return known->second;
    return known_[value] = compute(value);
  }

 private:
  bool compute(const Value* value) {
    if (aliases_.isWritten(value)) return false;
    if (constantOrAttribute(value, module_)) return true;
    const Node* node = value->node();
    if (!isPure(node)) return false;
    return std::all_of(node->inputs().begin(), node->inputs().end(),
                       [&](const Value* input) { return isConstant(input); });
  }

  const jit::Module& module_;
  Aliases aliases_;
  std::unordered_map<const Value*, bool> known_;  // looked up only
};

// "layer.in_proj_weight" for something computed from it; "" if from no attribute.
std::string firstAttribute(const Value* value) {
  if (const auto path = attributePath(value)) return *path;
  for (const Value* input : value->node()->inputs()) {
    if (!isTensor(input) && input->type()->kind() != c10::TypeKind::ListType) continue;
    std::string path = firstAttribute(input);
    if (!path.empty()) return path;
  }
  return "";
}

void fold(Value* value, Method& method, Program& program) {
  const auto result = Evaluator(program.module).evaluate(value);
  if (!result || !result->isTensor()) return;
  const std::string path = firstAttribute(value);
  const auto [owner, name] = ownerOf(program.module, path.empty() ? "weight" : path);
  const std::string prefix = path.substr(0, path.empty() ? 0 : path.size() - name.size());
  const std::string folded = prefix + freeAttributeName(owner, name + "_folded");
  setTensorAttribute(program.module, folded, result->toTensor().detach().clone());
  value->replaceAllUsesWith(
      insertAttributeRead(*method.graph, folded, program.module, *method.graph->nodes().begin()));
}

}  // namespace

void foldWeights(Program& program) {
  for (Method& method : program.methods) {
    Constancy constancy(method, program.module);
    for (Node* node : allNodes(*method.graph)) {
      const auto found = weightInputs().find(node->kind().toQualString());
      if (found == weightInputs().end()) continue;
      for (const size_t index : found->second) {
        Value* value = node->input(index);
        const bool computed = !constantOrAttribute(value, program.module) && isTensor(value);
        if (computed && constancy.isConstant(value)) fold(value, method, program);
      }
    }
    jit::EliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
