// quantize_joins: values that join at a branch or go round a loop are quantized before they join.
//
// Before:
//   %v = prim::If(%c)
//     block0(): ...; -> (%a)
//     block1(): ...; -> (%b)
//   %q = aten::quantize_per_tensor(%v, s, z, quint8)
// After:
//   %q = prim::If(%c)
//     block0(): ...; %aq = aten::quantize_per_tensor(%a, s, z, quint8) -> (%aq)
//     block1(): ...; %bq = aten::quantize_per_tensor(%b, s, z, quint8) -> (%bq)
//
// Before:
//   %o = prim::Loop(%n, %true, %i)
//     block0(%k, %x): %q = aten::quantize_per_tensor(%x, s, z, quint8); ...; -> (%true, %r)
// After:
//   %iq = aten::quantize_per_tensor(%i, s, z, quint8)
//   %oq = prim::Loop(%n, %true, %iq)
//     block0(%k, %q): ...; %rq = aten::quantize_per_tensor(%r, s, z, quint8) -> (%true, %rq)
//   %o = aten::dequantize(%oq)
//
// Needs:  insert_qdq, which gives %a, %b, %r and %i the qparams of the join where they are int8, so
//         that fuse finds nothing to do between them and the join.
// Leaves: values that the plan does not join: those with a float reader.

#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "qparams.h"

namespace jitquant {

using jit::Block;
using jit::Node;
using jit::Value;

namespace {

class Joiner {
 public:
  Joiner(Program& program, const Method& method) : program_(program), method_(method) {}

  void run() {
    for (Node* node : allNodes(*method_.graph)) {
      if (node->kind() == c10::aten::quantize_per_tensor) moveUp(node);
    }
  }

 private:
  void moveUp(Node* quantize) {
    Value* joined = quantize->input(0);
    if (method_.plan->joined.count(joined) == 0 || !hasOneUse(joined)) return;
    if (joined->node()->kind() == c10::prim::If) {
      for (Block* branch : joined->node()->blocks()) {
        quantizeInput(quantize, branch->return_node(), joined->offset());
      }
    } else {
      moveOutOfLoop(quantize, joined);
    }
    quantize->output()->replaceAllUsesWith(joined);
    program_.moved[joined] = *staticQParams(quantize->output());
    quantize->destroy();
  }

  // `joined` is input i of the loop's body, return i of it, input i + 1 and output i - 1 of the
  // loop.
  void moveOutOfLoop(Node* quantize, Value* joined) {
    Block* body = joined->node()->owningBlock();
    Node* loop = body->owningNode();
    const size_t i = joined->offset();
    quantizeInput(quantize, loop, i + 1);
    quantizeInput(quantize, body->return_node(), i);
    Value* result = loop->output(i - 1);
    Node* dequantize = method_.graph->create(c10::aten::dequantize);
    result->replaceAllUsesWith(dequantize->output());
    dequantize->addInput(result);
    dequantize->insertAfter(loop);
    carryObservation(program_, result, dequantize->output());
    program_.moved[result] = *staticQParams(quantize->output());
  }

  void quantizeInput(Node* quantize, Node* reader, size_t input) {
    Value* value = reader->input(input);
    Node* copy = method_.graph->createClone(
        quantize, [&](Value* v) { return v == quantize->input(0) ? value : v; });
    copyOrigin(copy, quantize)->insertBefore(reader);
    for (size_t i = 1; i < copy->inputs().size(); ++i) {  // the constants stand where it stood
      copy->replaceInput(i, insertConstantBefore(copy, *jit::toIValue(quantize->input(i))));
    }
    reader->replaceInput(input, copy->output());
    moveUp(copy);
  }

  Program& program_;
  const Method& method_;
};

}  // namespace

void quantizeJoins(Program& program) {
  for (const Method& method : program.methods) Joiner(program, method).run();
}

}  // namespace jitquant
