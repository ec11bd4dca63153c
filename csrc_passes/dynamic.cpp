#include "dynamic.h"

#include <ATen/ATen.h>

#include "float_ops.h"
#include "ir_util.h"
#include "recurrent.h"
#include "tables.h"

namespace jitquant {

using jit::Node;

namespace {

constexpr double kLargestFloat16 = 65504;

bool isDynamic(int64_t qconfig, const Program& program) {
  return qconfig >= 0 && program.qconfigs.at(qconfig).activations != Activations::kStatic;
}

}  // namespace

ObserverPair ObserverPair::of(const jit::Module& activation, const jit::Module& weight) {
  ObserverPair pair{activation, weight};
  const int64_t dtype = weight.attr("dtype").toInt();
  if (dtype == static_cast<int64_t>(at::kQUInt8)) pair.activations = Activations::kByteRows;
  if (dtype == static_cast<int64_t>(at::kQUInt4x2)) pair.activations = Activations::kFourBitRows;
  if (!activation.hasattr("is_dynamic") || !activation.attr("is_dynamic").toBool()) return pair;
  const bool is_half = dtype == static_cast<int64_t>(at::kHalf);
  pair.activations = is_half ? Activations::kFloat : Activations::kDynamic;
  pair.reduce_range = activation.attr("reduce_range").toBool();
  return pair;
}

const DynamicRow* dynamicRow(const Node* node, int64_t qconfig, const Program& program) {
  if (!isDynamic(qconfig, program)) return nullptr;
  const OpRow* row = findRow(node);
  if (row == nullptr) return nullptr;
  return program.target->findDynamic(row->name, program.qconfigs[qconfig].activations);
}

int64_t decisionOn(const Node* node, int64_t qconfig, const Program& program) {
  const bool has_no_form =
      isDynamic(qconfig, program) && isLayer(node) && dynamicRow(node, qconfig, program) == nullptr;
  if (!has_no_form) return qconfig;
  if (isForTables(program.qconfigs[qconfig])) return kNoTable;
  const bool is_half = program.qconfigs[qconfig].activations == Activations::kFloat;
  return is_half ? kNoFloat16Form : kNoDynamicForm;
}

std::vector<WeightUse> weightUses(Node* layer) {
  if (!isRecurrent(layer)) return {{layer, 1}};
  Node* list = layer->input(paramsInput(layer))->node();
  const size_t values_of_cell = list->inputs().size() / cellsOf(layer).size();
  std::vector<WeightUse> uses;
  for (size_t i = 0; i < list->inputs().size(); i += values_of_cell) {
    uses.push_back({list, i});
    uses.push_back({list, i + 1});
  }
  return uses;
}

jit::Value* unrounded(jit::Value* rounded) { return rounded->node()->input(0)->node()->input(0); }

std::string whyNotDynamic(const Node* node, int64_t qconfig, const Program& program) {
  const DynamicRow* dynamic = dynamicRow(node, qconfig, program);
  if (dynamic == nullptr) return kOnlyLayers;
  const OpRow& row = *findRow(node);
  if (row.filter != nullptr) {
    std::string reason = row.filter(node, program.module);
    if (!reason.empty()) return reason;
  }
  if (dynamic->activations == Activations::kFloat) {
    for (const WeightUse& use : weightUses(const_cast<Node*>(node))) {
      const at::Tensor weight = *constantTensor(use.value(), program.module);
      if (weight.numel() > 0 && weight.abs().max().item<double>() > kLargestFloat16) {
        return "its weights are too large for float16";
      }
    }
  }
  const auto type = node->input(row.data[0])->type()->cast<c10::TensorType>();
  if (type && type->scalarType() && *type->scalarType() != at::kFloat) {
    return std::string("it works on ") + c10::toString(*type->scalarType()) + " values";
  }
  return "";
}

}  // namespace jitquant
