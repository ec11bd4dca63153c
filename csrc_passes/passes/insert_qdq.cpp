// insert_qdq: each value of the plan is quantized and dequantized with constant qparams; each
// weight of an int8 op too.
//
// Before:
//   %c = aten::conv2d(%x, %w, ...); %r = aten::relu(%c)
// After:
//   %xq = aten::quantize_per_tensor(%x, s, z, quint8); %xd = aten::dequantize(%xq)
//   %wq = aten::quantize_per_channel(%w, ss, zs, 0, qint8); %wd = aten::dequantize(%wq)
//   %c = aten::conv2d(%xd, %wd, ...); %r = aten::relu(%c)
//   %rq = aten::quantize_per_tensor(%r, s', z', quint8); %rd = aten::dequantize(%rq)
//
// Needs:  plan, with the observations of a calibration.
// Leaves: float readers of a float value read it unrounded. Ops that move values have no pair of
//         their own; propagate_dequantize carries theirs on.

#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "qparams.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Inserter {
 public:
  Inserter(Program& program, Method& method) : program_(program), method_(method) {}

  void run() {
    const Plan& plan = *method_.plan;
    const std::vector<Node*> nodes = allNodes(*method_.graph);
    for (const ObservedValue& observed : plan.observed) {
      Value* value = observed.value;
      if (isAverage(value)) continue;  // it takes its input's qparams
      known_.emplace(value, chosenQParams(value));
      insert(value, known_.at(value), /*all_uses=*/producedInt8(value));
    }
    for (Node* node : nodes) {
      if (plan.int8.count(node) == 0) continue;
      const OpRow& row = *findRow(node);
      if (row.role == Role::kFixedQParams) {
        known_.emplace(node->output(), perTensor(row.fixed_scale, row.fixed_zero_point));
        insert(node->output(), known_.at(node->output()), true);
      } else if (row.role == Role::kWeighted) {
        const OpRecord& record = program_.records[*mark(node, kOpMark)];
        insertWeightPair(node, 1, program_.qconfigs[record.qconfig], program_);
      } else if (row.role == Role::kSharesInput || row.role == Role::kAverages) {
        const QParams& input = qparamsOf(node->input(row.data[0]));
        for (Value* result : resultsOf(node)) known_[result] = sharedQParams(node, input);
        if (row.role == Role::kAverages) insert(node->output(), input, /*all_uses=*/true);
      }
    }
  }

 private:
  // The pair's dequantize stands for the value that it rounds.
  const QParams& qparamsOf(Value* value) {
    if (value->node()->kind() == c10::aten::dequantize && known_.count(value) == 0) {
      value = value->node()->input()->node()->input(0);
    }
    return known_.at(value);
  }

  QParams chosenQParams(const Value* value) const {
    const Plan& plan = *method_.plan;
    if (const auto join = plan.joins.find(value); join != plan.joins.end()) {
      return chosenQParams(join->second);
    }
    const QParams& observed = observedAt(value);
    if (const auto members = plan.members.find(value); members != plan.members.end()) {
      QParams united = observed;
      for (const Value* member : members->second) united = unite(united, observedAt(member));
      return united;
    }
    const bool absorbed = plan.absorbed_by.count(value->node()) != 0;
    return absorbed ? tighten(observed, *activationBounds(value->node())) : observed;
  }

  const QParams& observedAt(const Value* value) const {
    return *program_.observations.at(value).qparams;
  }

  bool isAverage(const Value* value) const {
    const Node* node = value->node();
    return method_.plan->int8.count(node) != 0 && findRow(node)->role == Role::kAverages;
  }

  bool producedInt8(const Value* value) const {
    const Node* node = value->node();
    return method_.plan->int8.count(node) != 0 || method_.plan->absorbed_by.count(node) != 0;
  }

  void insert(Value* value, const QParams& qparams, bool all_uses) {
    Node* producer = value->node();
    Node* before = producer->kind() == c10::prim::Param ? *producer->owningBlock()->nodes().begin()
                                                        : producer->next();
    const auto uses = value->uses();
    const QuantizePair pair = insertQuantizePair(value, qparams, before);
    carryObservation(program_, value, pair.dequantize->output());
    for (const jit::Use& use : uses) {
      if (all_uses || method_.plan->isInt8Use(use)) {
        use.user->replaceInput(use.offset, pair.dequantize->output());
      }
    }
  }

  Program& program_;
  Method& method_;
  std::unordered_map<const Value*, QParams> known_;  // looked up only
};

}  // namespace

void insertQdq(Program& program) {
  for (Method& method : program.methods) Inserter(program, method).run();
}

}  // namespace jitquant
