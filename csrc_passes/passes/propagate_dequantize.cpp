// propagate_dequantize: dequantize moves down past ops that only move values or read shapes.
//
// Before:
//   %d = aten::dequantize(%q); %p = aten::max_pool2d(%d, ...); %n = aten::size(%d, %zero)
// After:
//   %pq = aten::max_pool2d(%q, ...); %p = aten::dequantize(%pq); %n = aten::size(%q, %zero)
//
// Needs:  insert_qdq.
// Leaves: ops that the plan keeps float.

#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "qparams.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

Value* quantizedBehind(Value* value) {
  return value->node()->kind() == c10::aten::dequantize && isTensor(value->node()->input())
             ? value->node()->input()
             : nullptr;
}

void moveBelow(Program& program, Node* node, const OpRow& row, Value* quantized) {
  jit::Graph& graph = *node->owningGraph();
  const Int8Row& int8 = *program.target->find(row);
  Node* moved = graph.create(c10::Symbol::fromQualString(int8.op.substr(0, int8.op.find('.'))));
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    if (!int8.args.empty() && i >= int8.args.size()) break;
    moved->addInput(i == row.data[0] ? quantized : node->input(i));
  }
  if (row.name == "aten::mul.Scalar") {
    moved->replaceInput(1, insertConstantBefore(node, *constantNumber(node->input(1))));
  }
  copyOrigin(moved, node)->insertBefore(node);
  program.records[*mark(node, kOpMark)].reason = moved->kind().toQualString();
  Node* dequantize = graph.create(c10::aten::dequantize, {moved->output()});
  dequantize->insertAfter(node);
  carryObservation(program, node->output(), dequantize->output());
  if (const auto qparams = qparamsOf(quantized, program)) {
    program.moved.emplace(moved->output(), sharedQParams(node, *qparams));
  }
  program.lowerings.push_back(
      {node, node->output(), moved->output(), nullptr, {node->input(row.data[0])}});
  node->output()->replaceAllUsesWith(dequantize->output());
}

}  // namespace

void propagateDequantize(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      const OpRow* row = findRow(node);
      if (row == nullptr) continue;
      Value* quantized = quantizedBehind(node->input(row->data[0]));
      if (quantized == nullptr) continue;
      if (row->role == Role::kMetadata) {
        node->replaceInput(row->data[0], quantized);
      } else if (row->role == Role::kSharesInput && method.plan->int8.count(node) != 0) {
        moveBelow(program, node, *row, quantized);
      }
    }
  }
}

}  // namespace jitquant
