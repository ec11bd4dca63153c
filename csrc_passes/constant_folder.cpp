#include "constant_folder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <sstream>
#include <string_view>

#include "dead_code.h"
#include "ir_util.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

std::string hashOf(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.detach().contiguous();
  const std::string_view bytes(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
  std::ostringstream text;
  text << dense.scalar_type() << dense.sizes() << std::hash<std::string_view>{}(bytes);
  return text.str();
}

bool isQuantize(const Node* node) {
  return node->kind() == c10::aten::quantize_per_tensor ||
         node->kind() == c10::aten::quantize_per_channel;
}

// Whether packed weights only become part of another.
bool isPart(const Node* prepack, const Target& target) {
  const auto& uses = prepack->output()->uses();
  return std::all_of(uses.begin(), uses.end(),
                     [&](const jit::Use& use) { return target.isPrepack(use.user); });
}

}  // namespace

void ConstantFolder::foldPrepacks(Method& method) {
  evaluator_.emplace(program_.module);
  for (Node* node : allNodes(*method.graph)) {
    if (program_.target->isPrepack(node) && !isPart(node, *program_.target)) {
      fold(node, "packed_params");
    }
  }
  eliminateDeadCode(method.graph);
}

void ConstantFolder::foldQuantizes(Method& method) {
  evaluator_.emplace(program_.module);
  for (Node* node : allNodes(*method.graph)) {
    if (isQuantize(node)) fold(node, "quantized");
  }
  eliminateDeadCode(method.graph);
}

void ConstantFolder::fold(Node* node, const std::string& suffix) {
  if (node->output()->uses().empty() || !isConstant(node->output())) return;
  std::string& name = names_[signature(node->output())];
  if (program_.target->isPrepack(node)) copyInputs(node);
  const auto value = evaluator_->evaluate(node->output());
  if (!value) return;
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

// What is packed may hold a bias as it is, and attributes share theirs with the user's model.
void ConstantFolder::copyInputs(const Node* prepack) {
  for (const Value* input : prepack->inputs()) {
    if (program_.target->isPrepack(input->node())) copyInputs(input->node());
    const auto constant = constantTensor(input, program_.module);
    if (!constant) continue;
    const auto [text, tensor] = firstOfItsKind(*constant);
    const auto [copy, is_new] = copies_.emplace(text, at::Tensor());
    if (is_new) copy->second = tensor.detach().clone();
    evaluator_->set(input, copy->second);
  }
}

// Whatever else is computed from constants may be written in place afterwards.
bool ConstantFolder::isConstant(const Value* value) const {
  if (constantOrAttribute(value, program_.module)) return true;
  const Node* node = value->node();
  const auto inputs = node->inputs();
  return (isQuantize(node) || program_.target->isPrepack(node) ||
          node->kind() == c10::prim::ListConstruct) &&
         std::all_of(inputs.begin(), inputs.end(),
                     [&](const Value* input) { return isConstant(input); });
}

std::string ConstantFolder::signature(const Value* value) {
  if (const auto constant = constantOrAttribute(value, program_.module)) {
    if (!constant->isTensor()) return signatureOf(*constant);
    const auto [text, tensor] = firstOfItsKind(constant->toTensor());
    evaluator_->set(value, tensor);  // so that equal tensors are saved once
    return text;
  }
  std::string text = value->node()->kind().toQualString();
  for (const Value* input : value->node()->inputs()) text += "," + signature(input);
  return "(" + text + ")";
}

std::string ConstantFolder::signatureOf(const at::IValue& constant) {
  std::ostringstream text;
  text << constant.tagKind() << " " << constant;
  return text.str();
}

std::pair<std::string, at::Tensor> ConstantFolder::firstOfItsKind(const at::Tensor& tensor) {
  const std::string hash = hashOf(tensor);
  std::vector<at::Tensor>& known = tensors_[hash];
  auto found = std::find_if(known.begin(), known.end(),
                            [&](const at::Tensor& other) { return other.equal(tensor); });
  if (found == known.end()) found = known.insert(found, tensor);
  return {hash + "#" + std::to_string(found - known.begin()), *found};
}

}  // namespace jitquant
