// plan: decides which ops become int8, which values are observed, and why every other op stays
// float. Changes nothing in the graph.
//
//   %c = aten::conv2d(%x, %w, ...)   int8; %x is observed, since the op reads it
//   %r = aten::relu(%c)              absorbed by the convolution; %r is observed, %c is not
//   %p = aten::max_pool2d(%r, ...)   int8; shares the qparams of %r
//   %s = aten::softmax(%p, ...)      float, for the reason in float_ops.cpp
//
// Needs:  canonicalize and fold_conv_bn; at convert also collect_observers, whose findings (an
//         int64 value, a branch that never ran) make further ops float: see plan_calibrated.cpp.
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
#include "tables.h"
#include "targets/engines.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

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
      if (isEmbedding(node)) {
        plan->tables.insert(node);
      } else if (dynamicRow(node, record(node).qconfig, program) != nullptr) {
        plan->dynamic.emplace(node, nullptr);
      } else {
        candidates.insert(node);
      }
    }
    for (Node* node : listed) takeRelu(node);
    dropUncalibrated(*this);
    for (Node* node : listed) {
      if (isCompute(node)) plan->int8.insert(node);
    }
    for (Node* node : listed) absorbActivation(node);
    for (Node* node : listed) markPathsTo(node);
    for (Node* node : listed) markPathFrom(node);
    if (!program.observations.empty()) {
      joinValues(*this);
      shareQParamsOfCats(*this);
    }
    for (Node* node : listed) report(node);
    listObserved(*this);
    return plan;
  }

 private:
  std::string whyFloat(const Node* node) {
    if (before_.isInt8(node)) return kInt8Before;
    const int64_t qconfig = record(node).qconfig;
    if (qconfig == kNoDynamicForm) {
      return "its qconfig is dynamic, and torch's dynamic kernels clip its output to the range of "
             "its input";
    }
    if (qconfig == kNoFloat16Form) return "torch has no kernel of float16 for it";
    if (qconfig == kNoTable) return kNoTableHere;
    if (qconfig >= 0 && isEmbedding(node)) return whyNotTable(node, qconfig, program);
    const OpRow* row = findRow(node);
    if (row == nullptr) return whyFloatOp(node, program.module, qconfig >= 0 && !isStatic(node));
    if (qconfig == kNoRule) return "no rule of its configuration matches it";
    if (qconfig < 0) return "its qconfig is None";
    if (isForTables(program.qconfigs[qconfig])) return kNoTableHere;
    if (program.qconfigs[qconfig].activations != Activations::kStatic) {
      return whyNotDynamic(node, qconfig, program);
    }
    if (row->role == Role::kRecurrent) return kOnlyDynamic;
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
      if (const Node* writer = aliases_.laterWriterOf(value)) return whyWritten(writer);
    }
    return "";
  }

  static std::string whyWritten(const Node* writer) {
    const bool is_known = writer->maybeSchema() != nullptr && writer->schema().is_mutable();
    return describe(writer) + (is_known ? " writes" : " may write") + " its memory in place";
  }

  // A relu that alone follows a dynamic layer, and is not left float, runs in the layer's op.
  void takeRelu(Node* layer) {
    const auto dynamic = plan->dynamic.find(layer);
    if (dynamic == plan->dynamic.end()) return;
    const DynamicRow& row = *dynamicRow(layer, record(layer).qconfig, program);
    if (row.relu_op.empty() || !hasOneUse(layer->output())) return;
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
      needed.emplace(root(value), qconfigOfInput(op, root(value)));
    }
  }

  // Whose observer sees an input that no int8 op gives: the op's, unless it is of fixed qparams,
  // which are those of the op's output. Then that of the op which gives it, or of any.
  int64_t qconfigOfInput(const Node* op, const Value* input) const {
    const auto suits = [&](const Node* node) { return isStatic(node) && !hasFixedQParams(node); };
    if (suits(op)) return record(op).qconfig;
    if (suits(input->node())) return record(input->node()).qconfig;
    const auto other = std::find_if(listed.begin(), listed.end(), suits);
    return record(other == listed.end() ? op : *other).qconfig;
  }

  // Asked of listed ops, at prepare: a prepared model has the templates of weights only.
  bool hasFixedQParams(const Node* node) const {
    if (!program.observations.empty()) return false;
    const jit::Module& observer = program.qconfigs[record(node).qconfig].activation;
    const auto name = observer.type()->name();
    return name && name->name() == "FixedQParamsObserver";
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
    if (plan->tables.count(node) != 0) {
      entry.int8 = true;
      entry.reason = "its table is packed";
    } else if (plan->dynamic.count(node) != 0) {
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
      entry.reason = whyBetween(node);
    }
  }

  // Why a candidate is float that only works on what int8 ops give or read.
  std::string whyBetween(const Node* node) const {
    if (findRow(node)->role == Role::kActivation) return "no int8 op before it can absorb it";
    if (onlyMoves(node)) return "it moves values between float ops";
    const bool had_absorber = !isAverage(node) && isObserved(node->output());
    return had_absorber ? "the op that would absorb it stays float"
                        : "no int8 op gives its input or reads its result";
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
