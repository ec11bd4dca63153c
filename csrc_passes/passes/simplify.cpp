// simplify: an op that for its arguments equals another op becomes that op.
//
// Before:
//   %a, %i = aten::max_pool2d_with_indices(%x, ...)      nobody reads %i
//   %b = aten::selu(%a); %c = aten::clamp(%b, %zero, %none)
//   %d = aten::instance_norm(%c, %w, %b, %mean, %var, %false, %m, %eps, %cudnn)
// After:
//   %a = aten::max_pool2d(%x, ...)
//   %b = aten::elu(%a, 1.6733, 1.0507, 1); %c = aten::relu(%b)
//   %d = aten::batch_norm(%c, %w, %b, %mean, %var, %false, %m, %eps, %cudnn)
//
// Needs:  canonicalize, which refuses normalizations in training mode; functionalize.
// Leaves: a clamp at a float zero, which makes integers float.

#include "dead_code.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// torch's own constants, in ATen/native/Activation.cpp.
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;

void replaceOutput(Node* old, c10::Symbol kind, const std::vector<Value*>& inputs) {
  Node* node = old->owningGraph()->create(kind, inputs);
  copyOrigin(node, old)->insertBefore(old);
  node->output()->copyMetadata(old->output(0));
  old->output(0)->replaceAllUsesWith(node->output());
  old->destroy();
}

void replaceWithElu(Node* node, double alpha, double scale, double input_scale) {
  std::vector<Value*> inputs{node->input(0)};
  for (const double number : {alpha, scale, input_scale}) {
    inputs.push_back(insertConstantBefore(node, number));
  }
  replaceOutput(node, c10::aten::elu, inputs);
}

bool isZero(const Value* value) { return constantNumber(value) == 0.0; }

// Clamping integers at a float gives floats.
bool keepsDtype(const Value* bound) { return bound->type()->kind() == c10::TypeKind::IntType; }

bool isReluByClamping(const Node* node) {
  const auto kind = node->kind();
  if (kind == c10::aten::threshold) return isZero(node->input(1)) && isZero(node->input(2));
  const bool below_only =
      kind == c10::aten::clamp_min || (kind == c10::aten::clamp && isNone(node->input(2)));
  return below_only && isZero(node->input(1)) && keepsDtype(node->input(1));
}

void simplifyNode(Node* node) {
  const auto kind = node->kind();
  const bool pools_2d = kind == c10::aten::max_pool2d_with_indices;
  if (isReluByClamping(node)) {
    replaceOutput(node, c10::aten::relu, {node->input(0)});
  } else if (kind == c10::aten::selu) {
    replaceWithElu(node, kSeluAlpha, kSeluScale, 1.0);
  } else if (kind == c10::aten::celu) {
    if (const auto alpha = constantNumber(node->input(1)); alpha && *alpha != 0.0) {
      replaceWithElu(node, *alpha, 1.0, 1.0 / *alpha);
    }
  } else if (kind == c10::aten::instance_norm && !isNone(node->input(3))) {
    replaceOutput(node, c10::aten::batch_norm, node->inputs().vec());
  } else if (pools_2d || kind == c10::aten::max_pool3d_with_indices) {
    if (node->output(1)->hasUses()) return;
    replaceOutput(node, pools_2d ? c10::aten::max_pool2d : c10::aten::max_pool3d,
                  node->inputs().vec());
  }
}

}  // namespace

void simplify(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) simplifyNode(node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
