// propagate_dequantize: dequantize moves down past ops that only move values or read shapes.
//
// Before:
//   %d = aten::dequantize(%q); %p = aten::max_pool2d(%d, ...); %n = aten::size(%d, %zero)
// After:
//   %pq = aten::max_pool2d(%q, ...); %p = aten::dequantize(%pq); %n = aten::size(%q, %zero)
//
// So do ops that give a list of tensors, with what reads the list:
//   %l = aten::chunk(%d, ...); %a, %b = prim::ListUnpack(%l)
// becomes
//   %lq = aten::chunk(%q, ...); %aq, %bq = prim::ListUnpack(%lq); %a = aten::dequantize(%aq)
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

// The op on the quantized tensor, beside the float op.
Node* insertMoved(const Int8Row& int8, Node* node) {
  jit::Graph& graph = *node->owningGraph();
  Node* moved = graph.create(c10::Symbol::fromQualString(int8.op.substr(0, int8.op.find('.'))),
                             node->outputs().size());
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    if (!int8.args.empty() && i >= int8.args.size()) break;
    // Of further tensors, such as that of expand_as, an op here reads the shape only.
    Value* behind = isTensor(node->input(i)) ? quantizedBehind(node->input(i)) : nullptr;
    moved->addInput(behind != nullptr ? behind : node->input(i));
  }
  if (const auto factor = constantFactor(node)) {
    moved->addInput(insertConstantBefore(node, *factor));
  }
  for (size_t i = 0; i < node->outputs().size(); ++i) {
    moved->output(i)->setType(node->output(i)->type());
    // Indices and the like are no quantized values.
    if (i > 0) node->output(i)->replaceAllUsesWith(moved->output(i));
  }
  copyOrigin(moved, node)->insertBefore(node);
  setMark(moved, kInt8Mark, 1);
  return moved;
}

// The tensors read from the list of `moved`, in the order of resultsOf(node).
std::vector<Value*> readMoved(const Node* node, Node* moved) {
  if (isTensor(node->output(0))) return {moved->output(0)};
  std::vector<Value*> results;
  for (const jit::Use& use : node->output(0)->uses()) {
    Node* reader = moved->owningGraph()->createClone(use.user, [&](Value* value) {
      return value == node->output(0) ? moved->output(0) : value;
    });
    copyOrigin(reader, use.user)->insertBefore(use.user);
    for (Value* result : reader->outputs()) results.push_back(result);
  }
  return results;
}

void moveBelow(Program& program, Node* node, const OpRow& row, Value* quantized) {
  Node* moved = insertMoved(*program.target->find(row), node);
  program.records[*mark(node, kOpMark)].reason = moved->kind().toQualString();
  Lowering lowering{node, {}, {node->input(row.data[0])}};
  const std::vector<Value*> results = resultsOf(node);
  const std::vector<Value*> moved_results = readMoved(node, moved);
  for (size_t i = 0; i < results.size(); ++i) {
    Node* dequantize = node->owningGraph()->create(c10::aten::dequantize, {moved_results[i]});
    dequantize->insertAfter(results[i]->node());
    carryObservation(program, results[i], dequantize->output());
    if (const auto qparams = qparamsOf(quantized, program)) {
      program.moved.emplace(moved_results[i], sharedQParams(node, *qparams));
    }
    lowering.results.push_back({results[i], moved_results[i], nullptr});
    results[i]->replaceAllUsesWith(dequantize->output());
  }
  program.lowerings.push_back(std::move(lowering));
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
