#include "inspection.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>

#include "alias.h"
#include "drop_observers.h"
#include "error.h"
#include "evaluate.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

std::map<std::string, std::vector<Node*>> nodesByKind(const Method& method) {
  std::map<std::string, std::vector<Node*>> nodes;
  for (Node* node : allNodes(*method.graph)) nodes[node->kind().toQualString()].push_back(node);
  return nodes;
}

// What the packed params hold as a weight. All classes of them have this method.
at::Tensor unpacked(const at::IValue& packed) {
  const auto object = packed.toObject();
  const at::IValue parts = object->type()->getMethod("unpack")({object});
  return parts.isTensor() ? parts.toTensor() : parts.toTupleRef().elements()[0].toTensor();
}

bool isObject(const Value* value) {
  return value->type()->kind() == c10::TypeKind::ClassType &&
         value->node()->kind() == c10::prim::GetAttr;
}

// The layer whose value a node computes: the node itself, or the one before its activation and
// its rounding.
const Node* layerBefore(const Node* node) {
  for (int steps = 0; steps < 3 && !node->inputs().empty(); ++steps) {
    const auto inputs = node->inputs();
    if (isLayer(node) || std::any_of(inputs.begin(), inputs.end(), isObject)) return node;
    node = node->input(0)->node();
  }
  return nullptr;
}

bool isLayerKind(const std::string& kind) {
  const auto& rows = opTable();
  return std::any_of(rows.begin(), rows.end(), [&](const OpRow& row) {
    return row.role == Role::kWeighted && row.name == kind;
  });
}

at::Tensor weightOf(const Node* layer, const jit::Module& module) {
  for (const Value* input : layer->inputs()) {
    if (!isObject(input)) continue;
    const auto packed = constantOrAttribute(input, module);
    return packed && packed->isObject() ? unpacked(*packed) : at::Tensor();
  }
  const Value* weight = layer->input(1);
  if (weight->node()->kind() == c10::aten::dequantize) weight = weight->node()->input(0);
  const auto value = Evaluator(module).evaluate(weight);
  return value && value->isTensor() ? value->toTensor().detach() : at::Tensor();
}

}  // namespace

Inspection Inspection::ofConverted(const jit::Module& converted,
                                   const std::vector<std::string>& methods,
                                   std::vector<OpRecord> records) {
  const at::NoGradGuard no_grad;
  Inspection inspection;
  inspection.program_ = flatten(converted, methods);
  inspection.program_.records = std::move(records);
  inspection.nodes_.resize(inspection.program_.records.size());
  for (const Method& method : inspection.program_.methods) {
    const auto nodes = nodesByKind(method);
    for (size_t i = 0; i < inspection.program_.records.size(); ++i) {
      const OpRecord& record = inspection.program_.records[i];
      if (record.method != method.name) continue;
      const auto found = nodes.find(record.value_kind);
      for (const int64_t place : record.value_nodes) {
        if (found == nodes.end() || place >= static_cast<int64_t>(found->second.size())) {
          throw UserError("the model's graph was changed after convert_jit: it has no " +
                          record.value_kind + " for the " + record.kind + " in '" + record.path +
                          "'. Convert the prepared model again.");
        }
        inspection.nodes_[i].push_back(found->second[place]);
      }
    }
  }
  return inspection;
}

Inspection Inspection::ofPrepared(const jit::Module& prepared,
                                  const std::vector<std::string>& methods,
                                  std::vector<OpRecord> records) {
  const at::NoGradGuard no_grad;
  Program program = flatten(prepared, methods);
  program.records = std::move(records);
  attachRecords(program);
  restoreState(program);
  dropArgumentRecorder(program);
  dropObservers(program);
  return ofListed(std::move(program));
}

Inspection Inspection::ofListed(Program program) {
  Inspection inspection;
  inspection.program_ = std::move(program);
  inspection.nodes_.resize(inspection.program_.records.size());
  for (const Method& method : inspection.program_.methods) {
    for (Node* node : listedNodes(method)) {
      if (const auto index = mark(node, kOpMark)) inspection.nodes_.at(*index).push_back(node);
    }
  }
  return inspection;
}

std::vector<at::Tensor> Inspection::weights() const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> weights(nodes_.size());
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].empty() || !isLayerKind(program_.records[i].kind)) continue;
    if (const Node* layer = layerBefore(nodes_[i][0]))
      weights[i] = weightOf(layer, program_.module);
  }
  return weights;
}

Inspection::Watched Inspection::watch(const jit::Module& tap) {
  const at::NoGradGuard no_grad;
  Watched watched;
  std::map<const Value*, Tapped> known;  // looked up only
  for (size_t i = 0; i < nodes_.size(); ++i) {
    for (const Node* node : nodes_[i]) {
      if (isTensor(node->output(0))) known[node->output(0)].record = static_cast<int64_t>(i);
    }
  }
  program_.qconfigs.clear();
  for (Method& method : program_.methods) {
    auto plan = std::make_shared<Plan>();
    const Aliases aliases(*method.graph, program_.module);
    const auto add = [&](Value* value, Tapped tapped) {
      tapped.written = aliases.laterWriterOf(value) != nullptr;
      tapped.tap = kObserverPrefix + std::to_string(watched.values.size());
      plan->shapes_only.push_back(value);
      watched.values.push_back(std::move(tapped));
    };
    for (Value* input : method.graph->inputs().slice(1)) {
      if (method.name != "forward" || !isTensor(input)) continue;
      known[input].input = static_cast<int64_t>(input->offset()) - 1;
      add(input, known[input]);
    }
    for (Node* node : allNodes(*method.graph)) {
      if (node->outputs().empty()) continue;
      if (const auto found = known.find(node->output(0)); found != known.end()) {
        add(node->output(0), found->second);
      } else if (node->kind() == c10::aten::quantize_per_tensor) {
        const auto source = known.find(node->input(0));
        if (source == known.end()) continue;
        Tapped tapped = source->second;
        tapped.rounds = true;
        add(node->output(), tapped);
      }
    }
    method.plan = std::move(plan);
  }
  insertObservers(program_, tap);
  for (Method& method : program_.methods) stripMarks(*method.graph);
  watched.module = program_.module;
  return watched;
}

}  // namespace jitquant
