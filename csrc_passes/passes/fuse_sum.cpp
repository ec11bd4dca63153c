// fuse_sum: a convolution adds what the sum behind it adds, in the memory of that operand.
//
// Before:
//   %c = quantized::conv2d(%x, %packed, s1, z1); %r = quantized::add_relu(%c, %a, s, z)
// After:
//   %r = quantized::conv2d_add_relu(%x, %a, %packed, s, z)
//
// The kernel puts the result where %a was, and writes past it if %a is smaller; its schema says
// neither. So %a must be of memory that nothing reads or holds later, be no value that torch may
// merge with another one, and have the result's sizes for whatever input the model gets.
//
// Needs:  fuse and chain_cats, so that all readers of int8 values are there, and that the engine
//         has such ops.
// Leaves: sums in loops, which torch may unroll and then merge values of.

#include <unordered_set>

#include "alias.h"
#include "dead_code.h"
#include "ir_util.h"
#include "next_layer.h"
#include "op_table.h"
#include "passes/passes.h"
#include "symbolic_sizes.h"
#include "targets/target.h"
#include "twins.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool isInLoop(const Node* node) {
  const Node* owner = node->owningBlock()->owningNode();
  return owner != nullptr && (owner->kind() == c10::prim::Loop || isInLoop(owner));
}

// Whether the result of an int8 op is in memory of its own. Of ops that move values, some return
// their input where there is nothing to move, whatever their schema says.
bool makesMemory(const Node* node) {
  const bool is_known = mark(node, kInt8Mark) || node->kind() == c10::aten::quantize_per_tensor ||
                        node->kind() == c10::aten::dequantize;
  const OpRow* row = findRow(node);
  const bool may_move = row != nullptr && row->role == Role::kSharesInput;
  return is_known && makesFreshTensor(node) &&
         (!may_move || node->kind() == c10::aten::relu || node->kind() == c10::aten::max_pool2d);
}

// Whether everything but the sum has read the value by then, and keeps nothing of it.
bool isReadBefore(const Value* value, const Node* layer, const Node* sum) {
  for (const jit::Use& use : value->uses()) {
    const Node* user = use.user;
    if (user == sum) continue;
    if (user->kind() == c10::prim::ListConstruct) {
      if (!isOnlyRead(user->output()) || !isReadBefore(user->output(), layer, sum)) return false;
      continue;
    }
    const bool keeps_nothing = makesMemory(user) || readsOnlyShape(user);
    if (user == layer || !keeps_nothing || !user->isBefore(sum)) return false;
  }
  return true;
}

class SumFuser {
 public:
  SumFuser(Program& program, Method& method)
      : program_(program), sizes_(program, method), twins_(*method.graph) {}

  void visit(Node* sum) {
    const auto inputs = sum->inputs();
    if (!mark(sum, kInt8Mark) || inputs.size() < 2 || !isTensor(inputs[1]) || isInLoop(sum)) return;
    if (!fuse(sum, 0)) fuse(sum, 1);
  }

 private:
  // With the convolution that gives that input.
  bool fuse(Node* sum, size_t index) {
    Node* layer = sum->input(index)->node();
    Value* accumulator = sum->input(1 - index);
    const FusedRow* row = program_.target->findFused(layer, sum);
    if (row == nullptr || !hasOneUse(layer->output())) return false;
    if (layer->owningBlock() != sum->owningBlock()) return false;
    if (overwritten_.count(layer->input(0)) != 0 || !isFree(accumulator, layer, sum)) return false;

    Node* fused = sum->owningGraph()->create(
        c10::Symbol::fromQualString(row->op),
        {layer->input(0), accumulator, layer->input(1), sum->input(2), sum->input(3)});
    copyOrigin(fused, sum)->insertBefore(sum);
    for (const Node* part : {layer, sum}) program_.records[*mark(part, kOpMark)].reason = row->op;
    sizes_.set(fused->output(), sum->output());
    twins_.set(fused->output(), sum->output());
    overwritten_.insert(accumulator);
    replaceAndDestroy(sum, fused->output());
    return true;
  }

  bool isFree(const Value* accumulator, const Node* layer, const Node* sum) const {
    return makesMemory(accumulator->node()) &&
           accumulator->node()->owningBlock() == sum->owningBlock() &&
           sizes_.of(accumulator) == sizes_.of(layer->output()) && !twins_.hasTwin(accumulator) &&
           isReadBefore(accumulator, layer, sum);
  }

  Program& program_;
  SymbolicSizes sizes_;
  Twins twins_;
  std::unordered_set<const Value*> overwritten_;  // looked up only
};

}  // namespace

void fuseSum(Program& program) {
  if (!program.target->fusesLayers()) return;
  for (Method& method : program.methods) {
    SumFuser fuser(program, method);
    for (Node* node : allNodes(*method.graph)) fuser.visit(node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
