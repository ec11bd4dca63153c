#include "recurrent.h"

#include "ir_util.h"
#include "op_table.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool hasBiases(const Node* node) {
  return constantNumber(argumentNamed(node, "has_biases")) != 0.0;
}

size_t valuesOfCell(const Node* node) { return hasBiases(node) ? 4 : 2; }

Node* listOf(const Node* node) { return const_cast<Node*>(node)->input(paramsInput(node))->node(); }

}  // namespace

bool isRecurrent(const Node* node) {
  return node->kind() == c10::aten::lstm || node->kind() == c10::aten::gru;
}

bool isInEvalMode(const Node* recurrent) {
  return constantNumber(argumentNamed(recurrent, "train")) == 0.0;
}

bool readsPacked(const Node* recurrent) {
  return recurrent->schema().argumentIndexWithName("batch_sizes").has_value();
}

Value* argumentNamed(const Node* node, const std::string& name) {
  return const_cast<Node*>(node)->input(*node->schema().argumentIndexWithName(name));
}

size_t paramsInput(const Node* recurrent) {
  return static_cast<size_t>(*recurrent->schema().argumentIndexWithName("params"));
}

std::vector<Cell> cellsOf(const Node* recurrent) {
  const auto values = listOf(recurrent)->inputs();
  const size_t size = valuesOfCell(recurrent);
  std::vector<Cell> cells;
  for (size_t i = 0; i + size <= values.size(); i += size) {
    Cell cell{values[i], values[i + 1], nullptr, nullptr};
    if (size == 4) {
      cell.b_ih = values[i + 2];
      cell.b_hh = values[i + 3];
    }
    cells.push_back(cell);
  }
  return cells;
}

std::string isRecurrentLayer(const Node* node, const jit::Module& module) {
  for (const char* name : {"has_biases", "num_layers", "bidirectional"}) {
    if (!constantNumber(argumentNamed(node, name))) return "its geometry is computed at run time";
  }
  if (!isInEvalMode(node)) return "it runs in training mode";
  const Node* list = listOf(node);
  if (list->kind() != c10::prim::ListConstruct) return "its weights are computed at run time";
  if (!hasOneUse(list->output())) return "its list of weights has another user";
  const auto layers = static_cast<size_t>(*constantNumber(argumentNamed(node, "num_layers")));
  const bool both_ways = constantNumber(argumentNamed(node, "bidirectional")) != 0.0;
  const size_t cells = layers * (both_ways ? 2 : 1);
  if (list->inputs().size() != cells * valuesOfCell(node)) {
    return "torch has no int8 kernel for projected states";
  }
  for (const Cell& cell : cellsOf(node)) {
    for (const Value* weight : {cell.w_ih, cell.w_hh}) {
      std::string reason = whyNotWeight(weight, node, module);
      if (!reason.empty()) return reason;
    }
    for (const Value* bias : {cell.b_ih, cell.b_hh}) {
      if (bias != nullptr && !constantTensor(bias, module))
        return "its bias is computed at run time";
    }
  }
  return "";
}

}  // namespace jitquant
