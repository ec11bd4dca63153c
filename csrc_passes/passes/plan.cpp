// plan: decides which ops become int8, which values are observed, and why every other op stays
// float. Changes nothing in the graph.
//
//   %c = aten::conv2d(%x, %w, ...)   int8; %x is observed, since the op reads it
//   %r = aten::relu(%c)              absorbed by the convolution; %r is observed, %c is not
//   %p = aten::max_pool2d(%r, ...)   int8; shares the qparams of %r
//   %s = aten::softmax(%p, ...)      float, for the reason in float_ops.cpp
//
// Needs:  canonicalize and fold_conv_bn; at convert also collect_observers, whose findings (an
//         int64 value, a branch that never ran) make further ops float.
// Leaves: the graph as it is.

#include "alias.h"
#include "dynamic.h"
#include "float_ops.h"
#include "int8_before.h"
#include "ir_util.h"
#include "masks.h"
#include "passes/passes.h"
#include "plan_draft.h"
#include "qparams.h"
#include "targets/engines.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// An average has its input's qparams. Where it spans less than an eighth of the input's range, less
// than 5 of 8 bits would be left of it (about 30 dB).
constexpr double kMostRangeOfAverage = 8.0;

class Planner : private PlanDraft {
 public:
  Planner(Program& program, Method& method)
      : PlanDraft(program, method),
        aliases_(*method.graph, program.module),
        before_(*method.graph) {}

  std::shared_ptr<const Plan> run() {
    for (Node* node : allNodes(*method.graph)) {
      if (const auto index = mark(node, kOpMark)) {
        listed.push_back(node);
        OpRecord& record = program.records[*index];
        if (record.int8 || record.reason == kFloat16Weight) record.reason.clear();
        record.int8 = false;
      }
    }
    for (Node* node : listed) {
      if (record(node).reason.empty()) record(node).reason = whyFloat(node);
      if (!record(node).reason.empty()) continue;
      if (dynamicRow(node, record(node).qconfig, program) != nullptr) {
        plan->dynamic.emplace(node, nullptr);
      } else {
        candidates.insert(node);
      }
    }
    for (Node* node : listed) takeRelu(node);
    dropUncalibrated();
    for (Node* node : listed) {
      if (isCompute(node)) plan->int8.insert(node);
    }
    for (Node* node : listed) absorbActivation(node);
    for (Node* node : listed) markPathsTo(node);
    for (Node* node : listed) markPathFrom(node);
    if (!program.observations.empty()) joinValues(*this);
    for (Node* node : listed) report(node);
    listObserved(*this);
    return plan;
  }

 private:
  std::string whyFloat(const Node* node) {
    if (before_.isInt8(node)) return "it was int8 before";
    const int64_t qconfig = record(node).qconfig;
    if (qconfig == kNoDynamicForm) {
      return "its qconfig is dynamic, and torch's dynamic kernels clip its output to the range of "
             "its input";
    }
    if (qconfig == kNoFloat16Form) return "torch has no kernel of float16 for it";
    const OpRow* row = findRow(node);
    if (row == nullptr) return whyFloatOp(node, program.module);
    if (qconfig == kNoRule) return "no rule of its configuration matches it";
    if (qconfig < 0) return "its qconfig is None";
    if (program.qconfigs[qconfig].activations != Activations::kStatic) {
      return whyNotDynamic(node, qconfig, program);
    }
    if (followsFloatConvolution(node)) return "the layer that it normalizes is left float";
    if (row->filter != nullptr) {
      std::string reason = row->filter(node, program.module);
      if (!reason.empty()) return reason;
    }
    std::string lack = currentEngine().problemOf(row->name);
    if (!lack.empty()) return lack;
    const Int8Row* int8 = program.target->find(*row);
    if (int8->unfit != nullptr) {
      std::string reason = int8->unfit(node, program.module);
      if (!reason.empty()) return reason;
    }
    std::string problem = listProblem(node);
    if (!problem.empty()) return problem;
    if (row->role == Role::kObserved && masks_.contain(node)) {
      return "only softmax or attention reads it, beside float values";
    }
    std::vector<Value*> values = dataInputs(node, *row);
    for (Value* result : resultsOf(node)) values.push_back(result);
    for (const Value* value : values) {
      if (!isTensor(value)) return "it reads a value that is no tensor";
      const auto dtype = value->type()->expect<c10::TensorType>()->scalarType();
      if (dtype && *dtype != at::kFloat) {
        return std::string("it works on ") + c10::toString(*dtype) + " values";
      }
      if (aliases_.isWrittenLater(value)) return "an op writes its memory in place";
    }
    return "";
  }

  // A relu that alone follows a dynamic layer, and is not left float, runs in the layer's op.
  void takeRelu(Node* layer) {
    const auto dynamic = plan->dynamic.find(layer);
    if (dynamic == plan->dynamic.end() || !hasOneUse(layer->output())) return;
    Node* user = layer->output()->uses()[0].user;
    const bool fits = user->kind() == c10::aten::relu && record(user).qconfig >= 0 &&
                      user->owningBlock() == layer->owningBlock();
    if (!fits) return;
    dynamic->second = user;
    candidates.erase(user);
    layer_of_[user] = layer;
  }

  // Whether it would be part of a convolution or linear layer if that were not left float.
  bool followsFloatConvolution(const Node* node) const {
    if (node->kind() != c10::aten::batch_norm) return false;
    const Node* layer = node->input(0)->node();
    return isLayer(layer) && hasOneUse(layer->output()) && record(layer).qconfig < 0;
  }

  // At convert: ops with a value that calibration could not give qparams to become float. That
  // can take the qparams from others, hence the loop.
  void dropUncalibrated() {
    if (program.observations.empty()) return;
    for (bool changed = true; changed;) {
      changed = false;
      for (Node* node : listed) {
        if (!isCompute(node) && !isAverage(node)) continue;
        std::string reason = isAverage(node) ? problemOfAverage(node) : problemOf(node);
        if (reason.empty()) continue;
        candidates.erase(node);
        record(node).reason = std::move(reason);
        changed = true;
      }
    }
  }

  std::string problemOf(Node* node) const {
    std::string slow = slowShapeOf(node);
    if (!slow.empty()) return slow;
    for (Value* value : dataInputs(node, *findRow(node))) {
      Value* source = root(value);
      if (findRowOfCompute(source) == Role::kFixedQParams) continue;
      if (!isObserved(source)) return problemAt(source);
    }
    if (findRow(node)->role == Role::kFixedQParams || isObserved(node->output())) return "";
    const Node* activation = absorbable(node);
    if (activation != nullptr && isObserved(activation->output())) return "";
    return problemAt(activation != nullptr ? activation->output() : node->output());
  }

  std::string slowShapeOf(const Node* node) const {
    const OpRow& row = *findRow(node);
    const ShapeFilter slow_shape = program.target->find(row)->slow_shape;
    if (slow_shape == nullptr) return "";
    const std::vector<Value*> values = dataInputs(node, row);
    const size_t ranks = shapesOf(values.at(0)).size();
    for (size_t i = 0; i < ranks; ++i) {
      Shapes shapes;
      for (const Value* value : values) {
        const Shapes seen = shapesOf(value);
        if (seen.empty()) return "";
        shapes.push_back(seen[std::min(i, seen.size() - 1)]);
      }
      std::string reason = slow_shape(node, shapes);
      if (!reason.empty()) return reason;
    }
    return "";
  }

  std::string problemOfAverage(Node* node) const {
    const auto input = qparamsAt(passedOn(node->output()));
    if (!input || !isObserved(node->output())) return "";
    const double own = program.observations.at(node->output()).qparams->scalarScale();
    if (own * kMostRangeOfAverage >= input->scalarScale()) return "";
    return "its values span less than an eighth of its input's range";
  }

  // The qparams that `value` is going to have, where calibration saw it or what it is made of.
  std::optional<QParams> qparamsAt(Value* value) const {
    Node* op = sourceOf(value);
    if (isObserved(value) && !isAverage(op)) return program.observations.at(value).qparams;
    if (isPassing(op)) {
      const auto input = qparamsAt(passedOn(value));
      return input ? std::optional(sharedQParams(op, *input)) : std::nullopt;
    }
    if (findRowOfCompute(value) != Role::kFixedQParams) return std::nullopt;
    const OpRow& row = *findRow(op);
    return perTensor(row.fixed_scale, row.fixed_zero_point);
  }

  // One for each rank that calibration saw.
  Shapes shapesOf(const Value* value) const {
    const auto found = program.observations.find(value);
    return found == program.observations.end() ? Shapes{} : found->second.shapes;
  }

  std::optional<Role> findRowOfCompute(const Value* value) const {
    if (!isCompute(value->node())) return std::nullopt;
    return findRow(value->node())->role;
  }

  std::string problemAt(const Value* value) const {
    const auto found = program.observations.find(value);
    const bool is_known = found != program.observations.end() && !found->second.problem.empty();
    return is_known ? found->second.problem : "one of its values was not observed";
  }

  // The activation that alone follows an op and that the op can absorb.
  Node* absorbable(Node* op) const {
    const OpRow* row = findRow(op);
    if (row->role == Role::kFixedQParams || !hasOneUse(op->output())) return nullptr;
    Node* user = op->output()->uses()[0].user;
    if (user->owningBlock() != op->owningBlock() || !isCandidate(user)) return nullptr;
    if (user->kind() == c10::aten::relu) {
      const Int8Row* int8 = program.target->find(*row);
      return int8 != nullptr && !int8->relu_op.empty() ? user : nullptr;
    }
    return activationBounds(user) ? user : nullptr;
  }

  void absorbActivation(Node* op) {
    if (plan->int8.count(op) == 0) return;
    if (Node* activation = absorbable(op)) {
      plan->activation_of[op] = activation;
      plan->absorbed_by[activation] = op;
    }
  }

  void markPathsTo(Node* op) {
    if (!isCompute(op)) return;
    for (Value* value : dataInputs(op, *findRow(op))) {
      for (Value* end = root(value); value != end; value = passedOn(value)) {
        plan->int8.insert(sourceOf(value));
      }
      needed.emplace(root(value), record(op).qconfig);
    }
  }

  // Values of int8 ops are moved on in int8: a quarter of the memory.
  void markPathFrom(Node* node) {
    if (!isPassing(node)) return;
    if (isInt8Output(root(node->input(findRow(node)->data[0])))) plan->int8.insert(node);
  }

  void report(const Node* node) {
    OpRecord& entry = record(node);
    entry.part_of = -1;
    if (before_.isInt8(node)) entry.int8 = true;
    const auto absorbed = plan->absorbed_by.find(node);
    const auto layer = layer_of_.find(node);
    if (plan->dynamic.count(node) != 0) {
      entry.int8 = !hasFloat16Weight(node);
      entry.reason = entry.int8 ? "int8, dynamic" : kFloat16Weight;
    } else if (layer != layer_of_.end()) {
      entry.int8 = !hasFloat16Weight(layer->second);
      entry.reason = std::string("absorbed by ") + layer->second->kind().toQualString();
      entry.part_of = *mark(layer->second, kOpMark);
    } else if (absorbed != plan->absorbed_by.end()) {
      entry.int8 = true;
      entry.reason = std::string("absorbed by ") + absorbed->second->kind().toQualString();
      entry.part_of = *mark(absorbed->second, kOpMark);
    } else if (plan->int8.count(node) != 0) {
      entry.int8 = true;
      entry.reason = "int8";
    } else if (isCandidate(node)) {
      entry.reason = findRow(node)->role == Role::kActivation ? "no int8 op before it can absorb it"
                                                              : "it moves values between float ops";
    }
  }

  bool hasFloat16Weight(const Node* layer) const {
    return program.qconfigs[record(layer).qconfig].activations == Activations::kFloat;
  }

  Aliases aliases_;
  Int8Before before_;
  std::unordered_map<const Node*, const Node*> layer_of_;  // relu -> dynamic layer that takes it
  Masks masks_;
};

}  // namespace

void plan(Program& program) {
  for (Method& method : program.methods) method.plan = Planner(program, method).run();
}

}  // namespace jitquant
