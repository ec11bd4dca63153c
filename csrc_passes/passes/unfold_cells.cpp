// unfold_cells: an LSTMCell, GRUCell or RNNCell with a dynamic qconfig becomes its linear layers
// and what torch computes between them.
//
// Before:
//   %r = aten::rnn_tanh_cell(%x, %h, %w, %u, %b, %d)
// After:
//   %i = aten::linear(%x, %w, %b); %g = aten::linear(%h, %u, %d)
//   %s = aten::add(%g, %i, 1); %r = aten::tanh(%s)
//
// Needs:  configure. torch's own int8 cells round to 7 bits, and are not faster than these ops.
// Leaves: cells that stay float, or whose qconfig is static.

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Unfolder {
 public:
  explicit Unfolder(Node* cell) : cell_(cell) {}

  void unfold() {
    const auto kind = cell_->kind();
    if (kind == c10::aten::lstm_cell) {
      unfoldLstm();
    } else if (kind == c10::aten::gru_cell) {
      unfoldGru();
    } else {
      const bool is_relu = kind == c10::aten::rnn_relu_cell;
      replace(0, op(is_relu ? c10::aten::relu : c10::aten::tanh, {sumOf(cell_->input(1))}));
    }
    cell_->destroy();
  }

 private:
  void unfoldLstm() {
    Value* state = cell_->input(1);
    const auto gates = chunks(sumOf(element(state, 0)), 4);
    Value* in = sigmoid(gates[0]);
    Value* keep = sigmoid(gates[1]);
    Value* fresh = tanh(gates[2]);
    Value* out = sigmoid(gates[3]);
    Value* kept = mul(keep, element(state, 1));
    Value* cell_state = add(kept, mul(in, fresh));
    replace(0, mul(out, tanh(cell_state)));
    replace(1, cell_state);
  }

  void unfoldGru() {
    Value* state = cell_->input(1);
    const auto of_input = chunks(ofInput(), 3);
    const auto of_state = chunks(ofState(state), 3);
    Value* reset = sigmoid(add(of_state[0], of_input[0]));
    Value* update = sigmoid(add(of_state[1], of_input[1]));
    Value* fresh = tanh(add(of_input[2], mul(of_state[2], reset)));
    Value* difference = op(c10::aten::sub, {state, fresh, insertConstantBefore(cell_, 1)});
    replace(0, add(mul(difference, update), fresh));
  }

  Value* ofInput() {
    return op(c10::aten::linear, {cell_->input(0), cell_->input(2), cell_->input(4)});
  }
  Value* ofState(Value* state) {
    return op(c10::aten::linear, {state, cell_->input(3), cell_->input(5)});
  }

  Value* sumOf(Value* state) {
    Value* of_input = ofInput();
    return add(ofState(state), of_input);
  }

  Value* element(Value* list, int64_t index) {
    const Node* construct = list->node();
    if (construct->kind() == c10::prim::ListConstruct && isOnlyRead(list)) {
      return list->node()->input(static_cast<size_t>(index));
    }
    return op(c10::aten::__getitem__, {list, insertConstantBefore(cell_, index)});
  }

  std::vector<Value*> chunks(Value* value, int64_t count) {
    Value* list = op(c10::aten::chunk,
                     {value, insertConstantBefore(cell_, count), insertConstantBefore(cell_, 1)});
    list->setType(c10::ListType::ofTensors());
    Node* unpack = cell_->owningGraph()->createListUnpack(list, static_cast<size_t>(count));
    copyOrigin(unpack, cell_)->insertBefore(cell_);
    return unpack->outputs().vec();
  }

  Value* add(Value* a, Value* b) {
    return op(c10::aten::add, {a, b, insertConstantBefore(cell_, 1)});
  }
  Value* mul(Value* a, Value* b) { return op(c10::aten::mul, {a, b}); }
  Value* sigmoid(Value* value) { return op(c10::aten::sigmoid, {value}); }
  Value* tanh(Value* value) { return op(c10::aten::tanh, {value}); }

  Value* op(c10::Symbol kind, at::ArrayRef<Value*> inputs) { return insertOp(cell_, kind, inputs); }

  void replace(size_t output, Value* value) {
    value->copyMetadata(cell_->output(output));
    cell_->output(output)->replaceAllUsesWith(value);
  }

  Node* cell_;
};

bool isDynamicCell(const Node* node, const Program& program) {
  const auto kind = node->kind();
  const bool is_cell = kind == c10::aten::lstm_cell || kind == c10::aten::gru_cell ||
                       kind == c10::aten::rnn_tanh_cell || kind == c10::aten::rnn_relu_cell;
  const auto qconfig = mark(node, kQConfigMark);
  return is_cell && *qconfig >= 0 && program.qconfigs[*qconfig].activations != Activations::kStatic;
}

}  // namespace

void unfoldCells(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (isDynamicCell(node, program)) Unfolder(node).unfold();
    }
  }
}

}  // namespace jitquant
