// lower_dynamic: a dynamic layer, with its relu, becomes one op that quantizes what it reads.
//
// Before:
//   %y = aten::linear(%xd, %wd, %b); %r = aten::relu(%y)      uses of %r
// After:
//   %packed = quantized::linear_prepack(%wq, %b)
//   %q = quantized::linear_relu_dynamic(%x, %packed, False)   uses of %q
//
// Before, for LSTM and GRU:
//   %l = prim::ListConstruct(%wd, %ud, %b, %d); %y, %h = aten::gru(%xd, %hx, %l, ...)
// After:
//   %p = quantized::linear_prepack(%wq, %b); %q = quantized::linear_prepack(%uq, %d)
//   %cell = quantized::make_quantized_cell_params_dynamic(%p, %q, %b, %d, False)
//   %cells = prim::ListConstruct(%cell); %y, %h = aten::quantized_gru(%x, %hx, %cells, ...)
//
// Needs:  insert_dynamic_qdq, and verify, which would take the float ops away.
// Leaves: the float ops, unused, for verify_dynamic to compare with.

#include <ATen/ATen.h>

#include "dynamic.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "recurrent.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// An op before `before` whose outputs have the types of its schema.
Node* insertTyped(Node* before, const std::string& op, const std::vector<Value*>& args,
                  size_t outputs = 1) {
  Node* node = before->owningGraph()->create(c10::Symbol::fromQualString(op), args, outputs);
  copyOrigin(node, before)->insertBefore(before);
  for (size_t i = 0; i < outputs; ++i) {
    node->output(i)->setType(node->getOperator().schema().returns().at(i).type());
  }
  return node;
}

class Lowerer {
 public:
  Lowerer(Node* layer, Program& program)
      : layer_(layer),
        program_(program),
        record_(program.records[*mark(layer, kOpMark)]),
        row_(*dynamicRow(layer, record_.qconfig, program)),
        is_half_(row_.activations == Activations::kFloat) {}

  void lowerLayer(Node* relu) {
    std::vector<Value*> args{input(), packed(layer_->input(1), layer_->input(2))};
    if (row_.takes_reduce_range) args.push_back(reduceRange());
    const std::string& op = relu != nullptr ? row_.relu_op : row_.op;
    replace(insertOp(layer_, c10::Symbol::fromQualString(op), args)->node(),
            relu != nullptr ? relu : layer_);
    record_.reason = op;
  }

  void lowerRecurrent() {
    std::vector<Value*> cells;
    for (const Cell& cell : cellsOf(layer_)) cells.push_back(joined(cell));
    Node* list = layer_->owningGraph()->create(c10::prim::ListConstruct, cells);
    copyOrigin(list, layer_)->insertBefore(layer_);
    list->output()->setType(c10::ListType::create(cells[0]->type()));
    std::vector<Value*> args(layer_->inputs().begin(), layer_->inputs().end());
    args[0] = input();
    args[paramsInput(layer_)] = list->output();
    args[paramsInput(layer_) + 1] = insertConstantBefore(layer_, true);  // it has biases
    for (const at::IValue& value : row_.constants) {
      args.push_back(insertConstantBefore(layer_, value));
    }
    replace(insertTyped(layer_, row_.op, args, layer_->outputs().size()), layer_);
    record_.reason = row_.op + (is_half_ ? ", with float16 weights" : "");
  }

 private:
  Value* input() const {
    Value* input = layer_->input(findRow(layer_)->data[0]);
    return is_half_ ? input : unrounded(input);
  }

  Value* packed(Value* rounded, Value* bias) {
    Value* weight = is_half_ ? unrounded(rounded) : rounded->node()->input(0);
    return insertTyped(layer_, row_.prepack, {weight, bias})->output();
  }

  Value* joined(const Cell& cell) {
    Value* b_ih = biasOf(cell.w_ih, cell.b_ih);
    Value* b_hh = biasOf(cell.w_hh, cell.b_hh);
    std::vector<Value*> args{packed(cell.w_ih, b_ih), packed(cell.w_hh, b_hh)};
    if (row_.cell_takes_biases) args.insert(args.end(), {b_ih, b_hh});
    if (row_.takes_reduce_range) args.push_back(reduceRange());
    return insertTyped(layer_, row_.cell, args)->output();
  }

  // Packed cells have biases always, and torch's quantized LSTM demands them.
  Value* biasOf(Value* weight, Value* bias) {
    if (bias != nullptr) return bias;
    const auto constant = constantTensor(unrounded(weight), program_.module);
    return insertConstantBefore(layer_, at::zeros({constant->size(0)}));
  }

  Value* reduceRange() {
    return insertConstantBefore(layer_, program_.qconfigs[record_.qconfig].reduce_range);
  }

  void replace(Node* lowered, Node* last) {
    DynamicLowering lowering{layer_, input(), {}, {}};
    for (size_t i = 0; i < last->outputs().size(); ++i) {
      lowered->output(i)->copyMetadata(last->output(i));
      last->output(i)->replaceAllUsesWith(lowered->output(i));
      lowering.float_outputs.push_back(last->output(i));
      lowering.dynamic_outputs.push_back(lowered->output(i));
    }
    program_.dynamic_lowerings.push_back(std::move(lowering));
  }

  Node* layer_;
  Program& program_;
  OpRecord& record_;
  const DynamicRow& row_;
  bool is_half_;
};

}  // namespace

void lowerDynamic(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      const auto dynamic = method.plan->dynamic.find(node);
      if (dynamic == method.plan->dynamic.end()) continue;
      Lowerer lowerer(node, program);
      if (isRecurrent(node)) {
        lowerer.lowerRecurrent();
      } else {
        lowerer.lowerLayer(dynamic->second);
      }
    }
  }
}

}  // namespace jitquant
