// Which values are observed, and of which only shapes are kept.

#include <algorithm>

#include "plan_draft.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Lister {
 public:
  explicit Lister(PlanDraft& draft) : draft_(draft) {}

  // In graph order, so that the observers' names do not depend on addresses.
  void run() {
    listBlock(draft_.method.graph->block());
    for (Value* input : draft_.method.graph->inputs()) {
      if (isTensor(input)) listShape(input);
    }
  }

 private:
  void listBlock(jit::Block* block) {
    for (Value* input : block->inputs()) listIfNeeded(input);
    for (Node* node : block->nodes()) {
      for (jit::Block* inner : node->blocks()) listBlock(inner);
      for (Value* output : node->outputs()) listIfNeeded(output);
      if (draft_.plan->int8.count(node) != 0) listShapes(node);
      if (draft_.plan->dynamic.count(node) != 0) listShape(node->input(findRow(node)->data[0]));
    }
    if (block->owningNode() != nullptr) watch(block);
  }

  // One value of each branch and loop, to know at convert whether it ran.
  void watch(jit::Block* block) {
    const auto is_listed = [&](const Value* value) { return has_shapes_.count(value) != 0; };
    const auto lists = [&](at::ArrayRef<Value*> values) {
      return std::any_of(values.begin(), values.end(), is_listed);
    };
    Value* first = nullptr;
    if (lists(block->inputs())) return;
    for (Node* node : block->nodes()) {
      if (lists(node->outputs())) return;
      if (first != nullptr || !draft_.isStatic(node)) continue;
      const auto tensor = std::find_if(node->outputs().begin(), node->outputs().end(), isTensor);
      if (tensor != node->outputs().end()) first = *tensor;
    }
    if (first != nullptr) listShape(first);
  }

  void listIfNeeded(Value* value) {
    const Node* op = value->node();
    const auto absorbed = draft_.plan->absorbed_by.find(op);
    if (absorbed != draft_.plan->absorbed_by.end()) op = absorbed->second;
    const bool is_output =
        draft_.isCompute(op) && draft_.plan->outputOf(const_cast<Node*>(op)) == value;
    if (is_output) {
      if (findRow(op)->role == Role::kFixedQParams) return;
      observe(value, draft_.record(op).qconfig);
    } else if (draft_.isAverage(op) && draft_.plan->int8.count(op) != 0) {
      observe(value, draft_.record(op).qconfig);
    } else if (const auto found = draft_.needed.find(value); found != draft_.needed.end()) {
      observe(value, found->second);
    }
  }

  void observe(Value* value, int64_t qconfig) {
    draft_.plan->observed.push_back({value, qconfig});
    has_shapes_.insert(value);
  }

  void listShapes(const Node* node) {
    const OpRow& row = *findRow(node);
    if (onlyMoves(node) || constantFactor(node)) return;
    for (Value* value : dataInputs(node, row)) listShape(value);
  }

  void listShape(Value* value) {
    if (has_shapes_.insert(value).second) draft_.plan->shapes_only.push_back(value);
  }

  PlanDraft& draft_;
  std::unordered_set<const Value*> has_shapes_;
};

}  // namespace

void listObserved(PlanDraft& draft) { Lister(draft).run(); }

}  // namespace jitquant
