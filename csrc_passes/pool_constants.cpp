#include "pool_constants.h"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/node_hashing.h>

#include <algorithm>
#include <optional>
#include <unordered_set>

#include "nodes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Whether values of this type cannot change.
bool isImmutable(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::StringType:
    case c10::TypeKind::NoneType:
    case c10::TypeKind::DeviceObjType:
      return true;
    default:
      return false;
  }
}

class Pool {
 public:
  explicit Pool(const std::shared_ptr<jit::Graph>& graph) : graph_(graph) {}

  void add(Node* constant) {
    const auto [found, is_new] = constants_.insert(constant);
    if (is_new) {
      Node* first = graph_->block()->nodes().front();
      if (constant != first) constant->moveBefore(first);
    } else if (isSameObject(constant, *found) || mayBecomeOne(constant, *found)) {
      constant->replaceAllUsesWith(*found);
      constant->destroy();
    }
  }

 private:
  static bool isSameObject(const Node* one, const Node* other) {
    const auto a = jit::toIValue(one->output()), b = jit::toIValue(other->output());
    return a && b && a->is(*b);
  }

  bool mayBecomeOne(const Node* one, const Node* other) {
    if (isImmutable(one->output()->type())) return true;
    if (isNeverAliased(one->output()) && isNeverAliased(other->output())) return true;
    if (!aliases_) aliases_.emplace(graph_);
    return aliases_->safeToChangeAliasingRelationship(const_cast<Node*>(one)->outputs(),
                                                      const_cast<Node*>(other)->outputs());
  }

  std::shared_ptr<jit::Graph> graph_;
  std::unordered_set<Node*, jit::HashNode, jit::EqualNode> constants_;  // looked up only
  std::optional<jit::AliasDb> aliases_;
};

}  // namespace

bool isNeverAliased(const Value* value) {
  return std::all_of(value->uses().begin(), value->uses().end(), [](const jit::Use& use) {
    const c10::FunctionSchema* schema = use.user->maybeSchema();
    return schema != nullptr && use.offset < schema->arguments().size() &&
           schema->arguments()[use.offset].alias_info() == nullptr;
  });
}

void poolConstants(const std::shared_ptr<jit::Graph>& graph) {
  Pool pool(graph);
  for (Node* constant :
       nodesWhere(*graph, [](const Node* node) { return node->kind() == c10::prim::Constant; })) {
    pool.add(constant);
  }
}

}  // namespace jitquant
