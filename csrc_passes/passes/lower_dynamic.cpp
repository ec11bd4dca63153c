// lower_dynamic: a dynamic layer, with its relu, becomes one op that quantizes what it reads.
//
// Before:
//   %y = aten::linear(%xd, %wd, %b); %r = aten::relu(%y)      uses of %r
// After:
//   %packed = quantized::linear_prepack(%wq, %b)
//   %q = quantized::linear_relu_dynamic(%x, %packed, False)   uses of %q
//
// Needs:  insert_dynamic_qdq, and verify, which would take the float ops away.
// Leaves: the float ops, unused, for verify_dynamic to compare with.

#include "dynamic.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// What insert_dynamic_qdq rounded: %x behind %xd, and %wq behind %wd or %w behind %wf.
Value* behindRounding(Value* rounded, bool of_weight, Activations activations) {
  Value* inner = rounded->node()->input(0);
  if (of_weight && activations == Activations::kDynamic) return inner;
  return inner->node()->input(0);
}

Value* packedWeight(Node* layer, const DynamicRow& row) {
  jit::Graph& graph = *layer->owningGraph();
  Node* prepack = graph.create(c10::Symbol::fromQualString(row.prepack));
  for (const size_t i : row.prepack_args) {
    Value* input = layer->input(i);
    prepack->addInput(i == 1 ? behindRounding(input, /*of_weight=*/true, row.activations) : input);
  }
  copyOrigin(prepack, layer)->insertBefore(layer);
  prepack->output()->setType(prepack->getOperator().schema().returns()[0].type());
  return prepack->output();
}

void lowerLayer(Node* layer, Node* relu, Program& program) {
  OpRecord& record = program.records[*mark(layer, kOpMark)];
  const ObserverPair& qconfig = program.qconfigs[record.qconfig];
  const DynamicRow& row = *dynamicRow(layer, record.qconfig, program);
  Value* input = layer->input(findRow(layer)->data[0]);
  if (row.activations == Activations::kDynamic) {
    input = behindRounding(input, /*of_weight=*/false, row.activations);
  }
  std::vector<Value*> args{input, packedWeight(layer, row)};
  if (row.takes_reduce_range) args.push_back(insertConstantBefore(layer, qconfig.reduce_range));
  const std::string& op = relu != nullptr ? row.relu_op : row.op;
  Value* lowered = insertOp(layer, c10::Symbol::fromQualString(op), args);
  Value* output = relu != nullptr ? relu->output() : layer->output();
  lowered->copyMetadata(output);
  output->replaceAllUsesWith(lowered);
  program.dynamic_lowerings.push_back({layer, input, output, lowered});
  record.reason = op;
}

}  // namespace

void lowerDynamic(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      const auto dynamic = method.plan->dynamic.find(node);
      if (dynamic != method.plan->dynamic.end()) lowerLayer(node, dynamic->second, program);
    }
  }
}

}  // namespace jitquant
