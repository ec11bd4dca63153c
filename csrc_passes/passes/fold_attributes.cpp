// fold_attributes: attributes that no method sets are read once, and plain values become constants;
// so do the dtypes of tensors.
//
// Before:
//   %t = GetAttr[name="training"](%self); %w1 = GetAttr[name="w"](%self); %w2 =
//   GetAttr[name="w"](%self); %d = prim::dtype(%w1)
// After:
//   %w = GetAttr[name="w"](%self)  (first in the graph); %t = prim::Constant[value=0]()
//   %d = prim::Constant[value=6]()
//
// Needs:  flatten, so that all reads and writes of the tree are in the kept methods' graphs.
// Leaves: attributes that a method sets.

#include <set>

#include "fold_constants.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "pool_constants.h"

namespace jitquant {

using at::IValue;
using jit::Node;
using jit::Value;

namespace {

bool isPlain(const IValue& value) {
  return value.isNone() || value.isBool() || value.isInt() || value.isDouble() ||
         value.isString() || value.isDevice();
}

// functional.embedding_bag asks whether its table is one of integers.
void foldDtypes(Method& method, const jit::Module& module, const std::set<std::string>& assigned) {
  for (Node* node : allNodes(*method.graph)) {
    if (node->kind() != c10::prim::dtype) continue;
    const auto path = attributePath(node->input());
    const auto tensor = constantTensor(node->input(), module);
    if (!path || assigned.count(*path) != 0 || !tensor) continue;
    const auto dtype = static_cast<int64_t>(tensor->scalar_type());
    replaceAndDestroy(node, insertConstantBefore(node, dtype));
  }
}

void foldReads(Method& method, const jit::Module& module, const std::set<std::string>& assigned) {
  std::unordered_map<std::string, Value*> first_read;
  for (Node* node : allNodes(*method.graph)) {
    if (node->kind() != c10::prim::GetAttr) continue;
    const auto path = attributePath(node->output());
    if (!path || assigned.count(*path) != 0) continue;
    const auto [found, is_first] = first_read.emplace(*path, node->output());
    if (!is_first) {
      node->output()->replaceAllUsesWith(found->second);
      continue;
    }
    const auto value = constantOrAttribute(node->output(), module);
    if (value && isPlain(*value)) {
      found->second = insertConstantBefore(*method.graph->nodes().begin(), *value);
      node->output()->replaceAllUsesWith(found->second);
    } else if (node->input()->node() != method.graph->param_node()) {
      node->moveAfter(node->input()->node());  // the parent was met first and moved already
    } else if (node != *method.graph->nodes().begin()) {
      node->moveBefore(*method.graph->nodes().begin());
    }
  }
}

}  // namespace

void foldAttributes(Program& program) {
  const auto assigned = assignedPaths(program);
  for (Method& method : program.methods) {
    foldReads(method, program.module, assigned);
    foldDtypes(method, program.module, assigned);
    foldConstants(method.graph);
    poolConstants(method.graph);
  }
}

}  // namespace jitquant
