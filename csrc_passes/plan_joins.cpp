// Which values of branches and loops join in int8.

#include <algorithm>

#include "plan_draft.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Joiner {
 public:
  explicit Joiner(PlanDraft& draft) : draft_(draft) {}

  void joinBlock(jit::Block* block) {
    for (Node* node : block->nodes()) {
      for (jit::Block* inner : node->blocks()) joinBlock(inner);
      if (node->kind() == c10::prim::If) {
        for (Value* output : node->outputs()) joinBranches(output);
      } else if (node->kind() == c10::prim::Loop) {
        for (size_t i = 0; i < node->outputs().size(); ++i) joinLoop(node, i);
      }
    }
  }

 private:
  bool isReadByInt8OpsOnly(const Value* value) const {
    return draft_.needed.count(value) != 0 && draft_.isObserved(value) &&
           std::all_of(value->uses().begin(), value->uses().end(),
                       [&](const jit::Use& use) { return draft_.plan->isInt8Use(use); });
  }

  void joinBranches(Value* output) {
    if (!isReadByInt8OpsOnly(output)) return;
    draft_.plan->joined.insert(output);
    for (jit::Block* branch : output->node()->blocks())
      join(branch->outputs()[output->offset()], output);
  }

  // Value i that goes round a loop. The last one, which leaves it, was not seen at the body's
  // input.
  void joinLoop(Node* loop, size_t i) {
    jit::Block* body = loop->blocks()[0];
    Value* carried = body->inputs()[i + 1];
    Value* last = loop->output(i);
    if (!isReadByInt8OpsOnly(carried)) return;
    Value* returned = source(body->outputs()[i + 1]);
    const bool last_was_seen =
        draft_.isObserved(last) || (draft_.isObserved(returned) && draft_.isInt8Output(returned));
    if (!last_was_seen || !isOfOneRange(carried, draft_.isObserved(last) ? last : returned)) return;
    draft_.plan->joined.insert(carried);
    join(body->outputs()[i + 1], carried);
    join(loop->input(i + 2), carried);
    if (draft_.needed.count(last) != 0 && draft_.isObserved(last)) addMember(last, carried);
  }

  // With one set of qparams, the narrower of two values would lose bits.
  bool isOfOneRange(const Value* a, const Value* b) const {
    const double first = draft_.program.observations.at(a).qparams->scalarScale();
    const double second = draft_.program.observations.at(b).qparams->scalarScale();
    return std::max(first, second) <= 2 * std::min(first, second);
  }

  // Up through ops that move values, to a value that nothing else reads.
  Value* source(Value* value) const {
    while (draft_.isPassing(sourceOf(value)) && hasOneUse(value) &&
           !draft_.isAverage(sourceOf(value)) && sourceOf(value)->kind() != c10::aten::mul) {
      value = PlanDraft::passedOn(value);
    }
    return value;
  }

  void join(Value* value, Value* into) {
    value = source(value);
    if (!hasOneUse(value)) return;
    if (value->node()->kind() == c10::prim::If) {
      draft_.plan->joined.insert(value);
      for (jit::Block* branch : value->node()->blocks())
        join(branch->outputs()[value->offset()], into);
    } else if (draft_.isInt8Output(value) && draft_.isObserved(value)) {
      addMember(value, into);
    }
  }

  void addMember(Value* value, Value* into) {
    draft_.plan->joins[value] = into;
    draft_.plan->members[into].push_back(value);
  }

  PlanDraft& draft_;
};

}  // namespace

void joinValues(PlanDraft& draft) { Joiner(draft).joinBlock(draft.method.graph->block()); }

}  // namespace jitquant
