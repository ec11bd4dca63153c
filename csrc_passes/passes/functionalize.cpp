// functionalize: in-place ops become functional where nobody can see the difference.
//
// Before:
//   %y = aten::add_(%x, %z, %one); %r = aten::relu_(%y)
// After:
//   %y = aten::add(%x, %z, %one); %r = aten::relu(%y)
//
// Dropout in eval mode goes first, since it returns its input, which its schema does not say.
//
// Needs:  fold_attributes.
// Leaves: in-place ops whose memory another value, an input or an attribute shares. plan keeps
//         such values float and says which op writes them.

#include <torch/csrc/jit/passes/remove_mutation.h>

#include <algorithm>

#include "alias.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// "aten::relu" for aten::relu_, if such an op takes the same arguments; "" for every other op.
std::string functionalName(const Node* node) {
  std::string name = node->kind().toQualString();
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr || !schema->is_mutable() || name.size() < 2 || name.back() != '_' ||
      name[name.size() - 2] == '_') {
    return "";
  }
  name.pop_back();
  return name;
}

// libtorch's pass keeps what might be an attribute, which is all that was ever put into a dict or
// list of a graph that sets attributes. Memory that nobody else can know needs no such caution.
void replaceWritesOfFreshValues(jit::Graph& graph) {
  for (Node* node : allNodes(graph)) {
    const std::string name = functionalName(node);
    if (name.empty()) continue;
    const Value* value = node->input(0);
    const bool is_private = makesFreshTensor(value->node()) && hasOneUse(value) &&
                            value->node()->owningBlock() == node->owningBlock();
    if (!is_private) continue;
    Node* functional = graph.create(c10::Symbol::fromQualString(name), node->inputs());
    if (functional->maybeSchema() == nullptr) {
      functional->destroy();
      continue;
    }
    copyOrigin(functional, node)->insertBefore(node);
    functional->output()->copyMetadata(node->output());
    replaceAndDestroy(node, functional->output());
  }
}

// Otherwise a write of the result would be taken for one that nobody else can see.
void dropDropouts(jit::Graph& graph) {
  for (Node* node : allNodes(graph)) {
    if (isDropout(node) && constantNumber(node->input(2)) == 0.0) {
      replaceAndDestroy(node, node->input(0));
    }
  }
}

bool hasHiddenAliases(jit::Graph& graph) {
  const std::vector<Node*> nodes = allNodes(graph);
  return std::any_of(nodes.begin(), nodes.end(), mayReturnItsInput);
}

}  // namespace

void functionalize(Program& program) {
  for (Method& method : program.methods) {
    dropDropouts(*method.graph);
    replaceWritesOfFreshValues(*method.graph);
    jit::RemoveListMutation(method.graph);
    if (!hasHiddenAliases(*method.graph)) jit::RemoveTensorMutation(method.graph);
  }
}

}  // namespace jitquant
