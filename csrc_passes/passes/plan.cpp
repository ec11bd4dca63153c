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

#include "plan.h"

#include "alias.h"
#include "float_ops.h"
#include "int8_before.h"
#include "ir_util.h"
#include "masks.h"
#include "passes/passes.h"
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

class Planner {
 public:
  Planner(Program& program, Method& method)
      : program_(program),
        method_(method),
        aliases_(*method.graph, program.module),
        before_(*method.graph) {}

  std::shared_ptr<const Plan> run() {
    for (Node* node : allNodes(*method_.graph)) {
      if (const auto index = mark(node, kOpMark)) {
        listed_.push_back(node);
        OpRecord& record = program_.records[*index];
        if (record.int8) record.reason.clear();
        record.int8 = false;
      }
    }
    for (Node* node : listed_) {
      if (record(node).reason.empty()) record(node).reason = whyFloat(node);
      if (record(node).reason.empty()) candidates_.insert(node);
    }
    dropUncalibrated();
    for (Node* node : listed_) {
      if (isCompute(node)) plan_->int8.insert(node);
    }
    for (Node* node : listed_) absorbActivation(node);
    for (Node* node : listed_) markPathsTo(node);
    for (Node* node : listed_) markPathFrom(node);
    if (!program_.observations.empty()) joinBlock(method_.graph->block());
    for (Node* node : listed_) report(node);
    listObserved();
    return plan_;
  }

 private:
  OpRecord& record(const Node* node) const { return program_.records[*mark(node, kOpMark)]; }
  bool isCandidate(const Node* node) const { return candidates_.count(node) != 0; }
  bool isCompute(const Node* node) const {
    if (!isCandidate(node)) return false;
    const Role role = findRow(node)->role;
    return role == Role::kWeighted || role == Role::kObserved || role == Role::kFixedQParams;
  }
  // Takes its qparams from its input.
  bool isPassing(const Node* node) const {
    if (!isCandidate(node) || plan_->absorbed_by.count(node) != 0) return false;
    const Role role = findRow(node)->role;
    return role == Role::kSharesInput || role == Role::kAverages;
  }

  // Observed, to know whether the qparams of its input suit it.
  bool isAverage(const Node* node) const {
    return isCandidate(node) && findRow(node)->role == Role::kAverages;
  }

  std::string whyFloat(const Node* node) {
    if (before_.isInt8(node)) return "it was int8 before";
    const OpRow* row = findRow(node);
    if (row == nullptr) return whyFloatOp(node, program_.module);
    if (record(node).qconfig == kNoRule) return "no rule of its configuration matches it";
    if (record(node).qconfig < 0) return "its qconfig is None";
    if (followsFloatConvolution(node)) return "the layer that it normalizes is left float";
    if (row->filter != nullptr) {
      std::string reason = row->filter(node, program_.module);
      if (!reason.empty()) return reason;
    }
    std::string lack = currentEngine().problemOf(row->name);
    if (!lack.empty()) return lack;
    const Int8Row* int8 = program_.target->find(*row);
    if (int8->unfit != nullptr) {
      std::string reason = int8->unfit(node, program_.module);
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

  // Whether it would be part of a convolution or linear layer if that were not left float.
  bool followsFloatConvolution(const Node* node) const {
    if (node->kind() != c10::aten::batch_norm) return false;
    const Node* layer = node->input(0)->node();
    return isLayer(layer) && hasOneUse(layer->output()) && record(layer).qconfig < 0;
  }

  // The value whose qparams `value` has: up through ops that only move values.
  Value* root(Value* value) const {
    while (isPassing(sourceOf(value)) && (isAverage(sourceOf(value)) || !isObserved(value))) {
      value = passedOn(value);
    }
    return value;
  }

  // What an op that passes values on made `value` of.
  static Value* passedOn(const Value* value) {
    Node* op = sourceOf(value);
    return op->input(findRow(op)->data[0]);
  }

  bool isObserved(const Value* value) const {
    const auto found = program_.observations.find(value);
    return found != program_.observations.end() && found->second.qparams.has_value();
  }

  // At convert: ops with a value that calibration could not give qparams to become float. That
  // can take the qparams from others, hence the loop.
  void dropUncalibrated() {
    if (program_.observations.empty()) return;
    for (bool changed = true; changed;) {
      changed = false;
      for (Node* node : listed_) {
        if (!isCompute(node) && !isAverage(node)) continue;
        std::string reason = isAverage(node) ? problemOfAverage(node) : problemOf(node);
        if (reason.empty()) continue;
        candidates_.erase(node);
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
    const ShapeFilter slow_shape = program_.target->find(row)->slow_shape;
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
    const double own = program_.observations.at(node->output()).qparams->scalarScale();
    if (own * kMostRangeOfAverage >= input->scalarScale()) return "";
    return "its values span less than an eighth of its input's range";
  }

  // The qparams that `value` is going to have, where calibration saw it or what it is made of.
  std::optional<QParams> qparamsAt(Value* value) const {
    Node* op = sourceOf(value);
    if (isObserved(value) && !isAverage(op)) return program_.observations.at(value).qparams;
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
    const auto found = program_.observations.find(value);
    return found == program_.observations.end() ? Shapes{} : found->second.shapes;
  }

  std::optional<Role> findRowOfCompute(const Value* value) const {
    if (!isCompute(value->node())) return std::nullopt;
    return findRow(value->node())->role;
  }

  std::string problemAt(const Value* value) const {
    const auto found = program_.observations.find(value);
    const bool is_known = found != program_.observations.end() && !found->second.problem.empty();
    return is_known ? found->second.problem : "one of its values was not observed";
  }

  // The activation that alone follows an op and that the op can absorb.
  Node* absorbable(Node* op) const {
    const OpRow* row = findRow(op);
    if (row->role == Role::kFixedQParams || !hasOneUse(op->output())) return nullptr;
    Node* user = op->output()->uses()[0].user;
    if (user->owningBlock() != op->owningBlock() || !isCandidate(user)) return nullptr;
    if (user->kind() == c10::aten::relu) {
      const Int8Row* int8 = program_.target->find(*row);
      return int8 != nullptr && !int8->relu_op.empty() ? user : nullptr;
    }
    return activationBounds(user) ? user : nullptr;
  }

  void absorbActivation(Node* op) {
    if (plan_->int8.count(op) == 0) return;
    if (Node* activation = absorbable(op)) {
      plan_->activation_of[op] = activation;
      plan_->absorbed_by[activation] = op;
    }
  }

  void markPathsTo(Node* op) {
    if (!isCompute(op)) return;
    for (Value* value : dataInputs(op, *findRow(op))) {
      for (Value* end = root(value); value != end; value = passedOn(value)) {
        plan_->int8.insert(sourceOf(value));
      }
      needed_.emplace(root(value), record(op).qconfig);
    }
  }

  // Values of int8 ops are moved on in int8: a quarter of the memory.
  void markPathFrom(Node* node) {
    if (!isPassing(node)) return;
    if (isInt8Output(root(node->input(findRow(node)->data[0])))) plan_->int8.insert(node);
  }

  bool isInt8Output(const Value* value) const {
    const Node* node = value->node();
    return isCompute(node) || plan_->absorbed_by.count(node) != 0;
  }

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

  bool isReadByInt8OpsOnly(const Value* value) const {
    return needed_.count(value) != 0 && isObserved(value) &&
           std::all_of(value->uses().begin(), value->uses().end(),
                       [&](const jit::Use& use) { return plan_->isInt8Use(use); });
  }

  void joinBranches(Value* output) {
    if (!isReadByInt8OpsOnly(output)) return;
    plan_->joined.insert(output);
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
    const bool last_was_seen = isObserved(last) || (isObserved(returned) && isInt8Output(returned));
    if (!last_was_seen || !isOfOneRange(carried, isObserved(last) ? last : returned)) return;
    plan_->joined.insert(carried);
    join(body->outputs()[i + 1], carried);
    join(loop->input(i + 2), carried);
    if (needed_.count(last) != 0 && isObserved(last)) addMember(last, carried);
  }

  // With one set of qparams, the narrower of two values would lose bits.
  bool isOfOneRange(const Value* a, const Value* b) const {
    const double first = program_.observations.at(a).qparams->scalarScale();
    const double second = program_.observations.at(b).qparams->scalarScale();
    return std::max(first, second) <= 2 * std::min(first, second);
  }

  // Up through ops that move values, to a value that nothing else reads.
  Value* source(Value* value) const {
    while (isPassing(sourceOf(value)) && hasOneUse(value) && !isAverage(sourceOf(value)) &&
           sourceOf(value)->kind() != c10::aten::mul) {
      value = passedOn(value);
    }
    return value;
  }

  void join(Value* value, Value* into) {
    value = source(value);
    if (!hasOneUse(value)) return;
    if (value->node()->kind() == c10::prim::If) {
      plan_->joined.insert(value);
      for (jit::Block* branch : value->node()->blocks())
        join(branch->outputs()[value->offset()], into);
    } else if (isInt8Output(value) && isObserved(value)) {
      addMember(value, into);
    }
  }

  void addMember(Value* value, Value* into) {
    plan_->joins[value] = into;
    plan_->members[into].push_back(value);
  }

  void report(const Node* node) {
    OpRecord& entry = record(node);
    if (before_.isInt8(node)) entry.int8 = true;
    const auto absorbed = plan_->absorbed_by.find(node);
    if (absorbed != plan_->absorbed_by.end()) {
      entry.int8 = true;
      entry.reason = std::string("absorbed by ") + absorbed->second->kind().toQualString();
    } else if (plan_->int8.count(node) != 0) {
      entry.int8 = true;
      entry.reason = "int8";
    } else if (isCandidate(node)) {
      entry.reason = findRow(node)->role == Role::kActivation ? "no int8 op before it can absorb it"
                                                              : "it moves values between float ops";
    }
  }

  // In graph order, so that the observers' names do not depend on addresses.
  void listObserved() {
    listBlock(method_.graph->block());
    for (Value* input : method_.graph->inputs()) {
      if (isTensor(input) && has_shapes_.insert(input).second) plan_->shapes_only.push_back(input);
    }
  }

  void listBlock(jit::Block* block) {
    for (Value* input : block->inputs()) listIfNeeded(input);
    for (Node* node : block->nodes()) {
      for (jit::Block* inner : node->blocks()) listBlock(inner);
      for (Value* output : node->outputs()) listIfNeeded(output);
      if (plan_->int8.count(node) != 0) listShapes(node);
    }
  }

  void listIfNeeded(Value* value) {
    const Node* op = value->node();
    const auto absorbed = plan_->absorbed_by.find(op);
    if (absorbed != plan_->absorbed_by.end()) op = absorbed->second;
    const bool is_output = isCompute(op) && plan_->outputOf(const_cast<Node*>(op)) == value;
    if (is_output) {
      if (findRow(op)->role == Role::kFixedQParams) return;
      observe(value, record(op).qconfig);
    } else if (isAverage(op) && plan_->int8.count(op) != 0) {
      observe(value, record(op).qconfig);
    } else if (const auto found = needed_.find(value); found != needed_.end()) {
      observe(value, found->second);
    }
  }

  void observe(Value* value, int64_t qconfig) {
    plan_->observed.push_back({value, qconfig});
    has_shapes_.insert(value);
  }

  void listShapes(const Node* node) {
    const OpRow& row = *findRow(node);
    const auto bounds = activationBounds(node);
    const bool only_moves =
        row.role == Role::kSharesInput && !bounds && node->kind() != c10::aten::max_pool1d &&
        node->kind() != c10::aten::max_pool2d && node->kind() != c10::aten::max_pool3d;
    if (only_moves) return;
    for (Value* value : dataInputs(node, row)) {
      if (has_shapes_.insert(value).second) plan_->shapes_only.push_back(value);
    }
  }

  Program& program_;
  Method& method_;
  Aliases aliases_;
  Int8Before before_;
  Masks masks_;
  std::shared_ptr<Plan> plan_ = std::make_shared<Plan>();
  std::vector<Node*> listed_;
  std::unordered_set<const Node*> candidates_;
  std::unordered_map<const Value*, int64_t> needed_;  // value -> qconfig of its first reader
  std::unordered_set<const Value*> has_shapes_;
};

}  // namespace

Value* Plan::outputOf(Node* op) const {
  const auto found = activation_of.find(op);
  return found == activation_of.end() ? op->output() : found->second->output();
}

bool Plan::isInt8Use(const jit::Use& use) const {
  const Node* user = use.user;
  if (user->kind() == c10::prim::ListConstruct) {
    return hasOneUse(user->output()) && isInt8Use(user->output()->uses()[0]);
  }
  if (int8.count(user) == 0) return false;
  const auto& data = findRow(user)->data;
  return std::find(data.begin(), data.end(), use.offset) != data.end();
}

void plan(Program& program) {
  for (Method& method : program.methods) method.plan = Planner(program, method).run();
}

}  // namespace jitquant
