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
// Leaves: in-place ops whose effect somebody sees who cannot read the result instead: the caller,
//         an attribute, a view from before, what runs behind the branch or in the next round of
//         the loop that it stands in. plan keeps such values float and says which op writes them.

#include <torch/csrc/jit/passes/remove_mutation.h>

#include <optional>
#include <string_view>

#include "alias.h"
#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"
#include "writes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// aten::relu_ may have a functional form; __and__ is none of an in-place op.
bool hasFunctionalName(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr || !schema->is_mutable()) return false;
  const std::string_view name = node->kind().toQualString();
  return name.size() >= 2 && name.back() == '_' && name[name.size() - 2] != '_';
}

// "aten::relu" for aten::relu_.
std::string functionalName(const Node* node) {
  std::string name = node->kind().toQualString();
  name.pop_back();
  return name;
}

// Before the node; null if there is no such op.
Node* functionalForm(Node* node, const std::string& name) {
  Node* functional = node->owningGraph()->create(c10::Symbol::fromQualString(name), node->inputs());
  if (functional->maybeSchema() == nullptr) {
    functional->destroy();
    return nullptr;
  }
  copyOrigin(functional, node)->insertBefore(node);
  functional->output()->copyMetadata(node->output());
  return functional;
}

// Aliases do not know when a value gets into a container. One that nobody else has read until it is
// written is in none.
void replaceWritesOfFreshValues(jit::Graph& graph) {
  for (Node* node : nodesWhere(graph, hasFunctionalName)) {
    const std::string name = functionalName(node);
    const Value* value = node->input(0);
    const bool is_private = makesFreshTensor(value->node()) && hasOneUse(value) &&
                            value->node()->owningBlock() == node->owningBlock();
    if (!is_private) continue;
    Node* functional = functionalForm(node, name);
    if (functional != nullptr) replaceAndDestroy(node, functional->output());
  }
}

// Otherwise a write of the result would be taken for one that nobody else can see.
void dropDropouts(jit::Graph& graph) {
  for (Node* node : nodesWhere(graph, isDropout)) {
    if (constantNumber(node->input(2)) == 0.0) {
      replaceAndDestroy(node, node->input(0));
    }
  }
}

bool replaceWrite(Node* write, const Writes& writes) {
  const std::string name = functionalName(write);
  if (write->outputs().size() != 1 || !isTensor(write->input(0))) return false;
  const auto reads = writes.readsBehind(write);
  if (!reads) return false;
  Node* functional = functionalForm(write, name);
  if (functional == nullptr) return false;
  for (const jit::Use& use : *reads) use.user->replaceInput(use.offset, functional->output());
  replaceAndDestroy(write, functional->output());
  return true;
}

void replaceWrites(jit::Graph& graph, const jit::Module& module) {
  std::optional<Writes> writes;
  for (Node* node : nodesWhere(graph, hasFunctionalName)) {
    if (!writes) writes.emplace(graph, module);
    if (replaceWrite(node, *writes)) writes.reset();
  }
}

}  // namespace

void functionalize(Program& program) {
  for (Method& method : program.methods) {
    dropDropouts(*method.graph);
    replaceWritesOfFreshValues(*method.graph);
    jit::RemoveListMutation(method.graph);
    replaceWrites(*method.graph, program.module);
  }
}

}  // namespace jitquant
