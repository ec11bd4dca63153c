// undo_mkldnn: what torch.jit.optimize_for_inference made becomes plain ops again.
//
// Before:
//   %m = aten::to_mkldnn(%x, %none); %w = prim::ConstantMKLDNNTensor[value=<Tensor>]()
//   %c = prim::mkldnn_convolution(%m, %w, %b, ...); %r = aten::relu_(%c)
//   %y = aten::to_dense(%r, %none, %none)
// After:
//   %w = prim::Constant[value=<Tensor>]()
//   %c = aten::conv2d(%x, %w, %b, ...); %y = aten::relu(%c)
//
// Needs:  flatten.
// Leaves: models without mkldnn tensors, and ops that it does not know, which canonicalize refuses.

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <unordered_set>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

struct PlainForm {
  const char* kind;  // without the underscore of the form that writes its input
  const char* plain;
  std::vector<const char*> attributes;  // of the node, which the plain op takes as arguments
};

const std::vector<PlainForm>& plainForms() {
  static const auto* const forms = new std::vector<PlainForm>{
      {"prim::MKLDNNHardSwish", "aten::hardswish", {}},
      {"prim::MKLDNNHardSigmoid", "aten::hardsigmoid", {}},
      {"prim::MKLDNNHardTanh", "aten::hardtanh", {"min_val", "max_val"}},
      {"prim::MKLDNNClamp", "aten::clamp", {"min_val", "max_val"}},
      {"prim::MKLDNNScalarMul", "aten::mul", {}},
      {"prim::MKLDNNLayerNorm", "aten::layer_norm", {}},
  };
  return *forms;
}

// The nodes that make or read mkldnn tensors, in graph order.
std::vector<Node*> mkldnnNodes(jit::Graph& graph) {
  std::unordered_set<const Value*> values;  // looked up only
  std::vector<Node*> found;
  for (Node* node : allNodes(graph)) {
    const auto inputs = node->inputs();
    const bool makes = node->kind() == c10::prim::ConstantMKLDNNTensor ||
                       node->kind() == c10::Symbol::aten("to_mkldnn");
    const bool reads = std::any_of(inputs.begin(), inputs.end(),
                                   [&](const Value* input) { return values.count(input) != 0; });
    if (!makes && !reads) continue;
    found.push_back(node);
    if (node->kind() == c10::Symbol::aten("to_dense")) continue;
    values.insert(node->outputs().begin(), node->outputs().end());
  }
  return found;
}

void replaceByOp(Node* node, const std::string& kind,
                 const std::vector<const char*>& attributes = {}) {
  Node* plain = node->owningGraph()->create(c10::Symbol::fromQualString(kind), node->inputs());
  copyOrigin(plain, node)->insertBefore(node);
  for (const char* name : attributes) {
    plain->addInput(insertConstantBefore(plain, node->f(c10::Symbol::attr(name))));
  }
  replaceAndDestroy(node, plain->output());
}

void undo(Node* node) {
  const std::string kind = node->kind().toQualString();
  if (kind == "prim::ConstantMKLDNNTensor") {
    const at::Tensor dense = node->t(c10::attr::value).to_dense();
    return replaceAndDestroy(node, insertConstantBefore(node, dense));
  }
  if (kind == "aten::to_mkldnn" || kind == "aten::to_dense") {
    return replaceAndDestroy(node, node->input(0));
  }
  if (kind == "prim::BroadcastMKLDNNTensors") {
    for (size_t i : {0, 1}) node->output(i)->replaceAllUsesWith(node->input(i));
    return node->destroy();
  }
  if (kind == "prim::mkldnn_convolution") {
    const auto weight = jit::toIValue(node->input(1));
    if (!weight) return;
    return replaceByOp(node, "aten::conv" + std::to_string(weight->toTensor().dim() - 2) + "d");
  }
  // An op that writes its input does so because nobody reads it afterwards.
  const bool writes = kind.back() == '_';
  const std::string base = writes ? kind.substr(0, kind.size() - 1) : kind;
  for (const PlainForm& form : plainForms()) {
    if (base == form.kind) return replaceByOp(node, form.plain, form.attributes);
  }
  if (writes && node->kind().is_aten()) replaceByOp(node, base);
}

}  // namespace

void undoMkldnn(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : mkldnnNodes(*method.graph)) undo(node);
  }
}

}  // namespace jitquant
