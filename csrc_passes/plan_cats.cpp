// Which values are written with the qparams of a concatenation.
//
//   %r = aten::relu(%c)              %r is written with the qparams of %y, so that the int8
//   %y = aten::cat([%r, ...], 1)     concatenation copies it and rounds nothing
//
// Where only concatenations read %r, its own qparams would be of no use: %y rounds and clips it
// anyway. Where others read it too, %r and %y get qparams that hold both of their ranges, if that
// coarsens the scale of neither by more than kMostGrowth. What is joined so is one group, which can
// hold several concatenations.

#include <algorithm>
#include <cmath>
#include <limits>

#include "plan_draft.h"
#include "qparams.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Measured, with the accuracy that it costs: DECISIONS.md, 2026-11-28.
constexpr double kMostGrowth = 1.5;

// Values of one set of qparams, which is that of the root, to which the plan's `joins` leads.
struct Group {
  QParams range;
  // The smallest scale of those in it that others than concatenations read; none: infinite.
  double finest;
};

class Sharer {
 public:
  explicit Sharer(PlanDraft& draft) : draft_(draft) {}

  // In graph order, so that what is shared does not depend on addresses.
  void run() {
    for (Node* node : draft_.listed) {
      if (!isCat(node)) continue;
      for (Value* value : dataInputs(node, *findRow(node))) share(movedFrom(value), node);
    }
  }

 private:
  bool isCat(const Node* node) const {
    return node->kind() == c10::aten::cat && draft_.plan->int8.count(node) != 0;
  }

  // Whether the op gives the very values that it reads.
  bool passesOn(const Node* op) const {
    return draft_.isPassing(op) && draft_.plan->int8.count(op) != 0 && !draft_.isAverage(op) &&
           !constantFactor(op);
  }

  // Up through ops that pass values on, to the one that is written.
  Value* movedFrom(Value* value) const {
    while (passesOn(sourceOf(value)) && !draft_.isObserved(value)) {
      value = PlanDraft::passedOn(value);
    }
    return value;
  }

  bool isReadByCatsOnly(const Value* value) const {
    return std::all_of(value->uses().begin(), value->uses().end(), [&](const jit::Use& use) {
      const Node* user = use.user;
      if (user->kind() == c10::prim::ListConstruct) {
        return hasOneUse(user->output()) && isCat(user->output()->uses()[0].user);
      }
      const OpRow* row = findRow(user);
      if (row == nullptr || use.offset != row->data[0]) return false;
      if (row->role == Role::kMetadata) return true;
      if (!passesOn(user)) return false;
      const std::vector<Value*> results = resultsOf(user);
      return std::all_of(results.begin(), results.end(), [&](const Value* result) {
        return !draft_.isObserved(result) && isReadByCatsOnly(result);
      });
    });
  }

  // Whether calibration chose the qparams of `value`, by the same qconfig as those of `cat`. Only a
  // relu is exact with any qparams.
  bool isFreeFor(const Value* value, const Node* cat) const {
    const Node* op = value->node();
    if (!draft_.isInt8Output(value) || !draft_.isObserved(value)) return false;
    if (const auto absorbed = draft_.plan->absorbed_by.find(op);
        absorbed != draft_.plan->absorbed_by.end()) {
      if (!isRelu(op)) return false;
      op = absorbed->second;
    }
    return draft_.record(op).qconfig == draft_.record(cat).qconfig;
  }

  Value* rootOf(Value* value) const {
    const auto& joins = draft_.plan->joins;
    for (auto join = joins.find(value); join != joins.end(); join = joins.find(value)) {
      value = join->second;
    }
    return value;
  }

  Group& groupOf(Value* root) {
    const auto found = groups_.find(root);
    if (found != groups_.end()) return found->second;
    const QParams& own = *draft_.program.observations.at(root).qparams;
    const double finest =
        isReadByCatsOnly(root) ? std::numeric_limits<double>::infinity() : own.scalarScale();
    return groups_.emplace(root, Group{own, finest}).first->second;
  }

  void share(Value* value, Node* cat) {
    Value* result = draft_.plan->outputOf(cat);
    Value* into = rootOf(result);
    Value* from = rootOf(value);
    if (from == into || !isFreeFor(value, cat) || !isFreeFor(from, cat)) return;
    const bool is_read_by_others = std::isfinite(groupOf(from).finest);
    if (is_read_by_others) {
      // With a relu of its own a concatenation rounds anew in any case; in a branch or loop it has
      // the range of that.
      if (result != cat->output() || draft_.plan->joined.count(into) != 0) return;
      if (!unite(from, into)) return;
    }
    draft_.plan->joins[from] = into;
  }

  bool unite(Value* from, Value* into) {
    const Group &a = groupOf(from), &b = groupOf(into);
    const Group both{jitquant::unite(b.range, a.range), std::min(a.finest, b.finest)};
    if (both.range.scalarScale() > kMostGrowth * both.finest) return false;
    groups_[into] = both;
    std::vector<Value*>& members = draft_.plan->members[into];
    members.push_back(from);
    if (const auto found = draft_.plan->members.find(from); found != draft_.plan->members.end()) {
      members.insert(members.end(), found->second.begin(), found->second.end());
    }
    return true;
  }

  PlanDraft& draft_;
  std::unordered_map<const Value*, Group> groups_;  // by root; looked up only
};

}  // namespace

void shareQParamsOfCats(PlanDraft& draft) { Sharer(draft).run(); }

}  // namespace jitquant
