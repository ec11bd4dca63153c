// Which ops calibration makes float: those that never ran, those with a value that it gave no
// qparams, and those of which it saw shapes or ranges that int8 does not suit.

#include <algorithm>

#include "plan_draft.h"
#include "qparams.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// An average has its input's qparams. Where it spans less than an eighth of the input's range, less
// than 5 of 8 bits would be left of it (about 30 dB).
constexpr double kMostRangeOfAverage = 8.0;

class Dropper {
 public:
  explicit Dropper(PlanDraft& draft) : draft_(draft) {}

  void run() {
    leaveBlocksThatNeverRan(draft_.method.graph->block());
    // An op that is dropped can take the qparams from others.
    for (bool changed = true; changed;) {
      changed = false;
      for (Node* node : draft_.listed) {
        const bool is_average = draft_.isAverage(node);
        if (!draft_.isCompute(node) && !is_average) continue;
        std::string reason = is_average ? problemOfAverage(node) : problemOf(node);
        if (reason.empty()) continue;
        leave(node, std::move(reason));
        changed = true;
      }
    }
  }

 private:
  void leave(const Node* node, std::string reason) {
    draft_.candidates.erase(node);
    draft_.record(node).reason = std::move(reason);
  }

  // --- branches and loops ---

  void leaveBlocksThatNeverRan(jit::Block* block) {
    for (Node* node : block->nodes()) {
      for (jit::Block* inner : node->blocks()) {
        if (neverRan(inner)) {
          leaveAll(inner, node->kind() == c10::prim::Loop ? "loop" : "branch");
        } else {
          leaveBlocksThatNeverRan(inner);
        }
      }
    }
  }

  // plan_observed.cpp sees to it that each block with ops has a value that is watched.
  bool neverRan(jit::Block* block) const {
    bool is_watched = false;
    bool saw_data = false;
    const auto look = [&](at::ArrayRef<Value*> values) {
      for (const Value* value : values) {
        const auto found = draft_.program.observations.find(value);
        if (found == draft_.program.observations.end()) continue;
        is_watched = true;
        saw_data = saw_data || !found->second.shapes.empty();
      }
    };
    look(block->inputs());
    for (Node* node : block->nodes()) look(node->outputs());
    return is_watched && !saw_data;
  }

  void leaveAll(jit::Block* block, const std::string& what) {
    for (Node* node : block->nodes()) {
      for (jit::Block* inner : node->blocks()) leaveAll(inner, what);
      if (!draft_.isStatic(node) || draft_.record(node).reason == kInt8Before) continue;
      leave(node, "its " + what + " " + kNeverRan);
    }
  }

  // --- values ---

  std::string problemOf(const Node* op) const {
    std::string slow = slowShapeOf(op);
    if (!slow.empty()) return slow;
    for (Value* value : dataInputs(op, *findRow(op))) {
      Value* source = draft_.root(value);
      if (hasFixedQParams(source) || draft_.isObserved(source)) continue;
      const Value* named = value;
      while (named != source && !isKnown(named)) named = PlanDraft::passedOn(named);
      return "its input" + nameOf(named) + " " + problemAt(named);
    }
    if (findRow(op)->role == Role::kFixedQParams || draft_.isObserved(op->output())) return "";
    const Node* activation = draft_.absorbable(op);
    const Value* output = activation != nullptr ? activation->output() : op->output();
    return draft_.isObserved(output) ? "" : "its output " + problemAt(output);
  }

  static std::string nameOf(const Value* value) {
    const Node* producer = value->node();
    if (producer->kind() != c10::prim::Param) return ", given by " + describe(producer) + ",";
    const bool is_of_method = producer->owningBlock()->owningNode() == nullptr;
    return is_of_method ? " '" + value->debugNameBase() + "'" : ", which goes round a loop,";
  }

  bool isKnown(const Value* value) const {
    const auto found = draft_.program.observations.find(value);
    return found != draft_.program.observations.end() && !found->second.problem.empty();
  }

  std::string problemAt(const Value* value) const {
    return isKnown(value) ? draft_.program.observations.at(value).problem
                          : "has no qparams, since the op that gives it is float";
  }

  std::string slowShapeOf(const Node* op) const {
    const OpRow& row = *findRow(op);
    const ShapeFilter slow_shape = draft_.program.target->find(row)->slow_shape;
    if (slow_shape == nullptr) return "";
    const std::vector<Value*> values = dataInputs(op, row);
    const size_t ranks = shapesOf(values.at(0)).size();
    for (size_t i = 0; i < ranks; ++i) {
      Shapes shapes;
      for (const Value* value : values) {
        const Shapes seen = shapesOf(value);
        if (seen.empty()) return "";
        shapes.push_back(seen[std::min(i, seen.size() - 1)]);
      }
      std::string reason = slow_shape(op, shapes);
      if (!reason.empty()) return reason;
    }
    return "";
  }

  // One for each rank that calibration saw.
  Shapes shapesOf(const Value* value) const {
    const auto found = draft_.program.observations.find(value);
    return found == draft_.program.observations.end() ? Shapes{} : found->second.shapes;
  }

  std::string problemOfAverage(const Node* op) const {
    const auto input = qparamsAt(PlanDraft::passedOn(op->output()));
    if (!input || !draft_.isObserved(op->output())) return "";
    const double own = draft_.program.observations.at(op->output()).qparams->scalarScale();
    if (own * kMostRangeOfAverage >= input->scalarScale()) return "";
    return "its values span less than an eighth of its input's range";
  }

  // The qparams that `value` is going to have, where calibration saw it or what it is made of.
  std::optional<QParams> qparamsAt(const Value* value) const {
    const Node* op = sourceOf(value);
    if (draft_.isObserved(value) && !draft_.isAverage(op)) {
      return draft_.program.observations.at(value).qparams;
    }
    if (draft_.isPassing(op)) {
      const auto input = qparamsAt(PlanDraft::passedOn(value));
      return input ? std::optional(sharedQParams(op, *input)) : std::nullopt;
    }
    if (!hasFixedQParams(value)) return std::nullopt;
    const OpRow& row = *findRow(op);
    return perTensor(row.fixed_scale, row.fixed_zero_point);
  }

  bool hasFixedQParams(const Value* value) const {
    return draft_.isCompute(value->node()) && findRow(value->node())->role == Role::kFixedQParams;
  }

  PlanDraft& draft_;
};

}  // namespace

void dropUncalibrated(PlanDraft& draft) {
  if (!draft.program.observations.empty()) Dropper(draft).run();
}

}  // namespace jitquant
