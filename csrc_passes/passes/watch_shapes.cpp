// watch_shapes: every tensor that an op reads passes through a shape recorder, for configuration by
// shape.
//
// Before:
//   %y = aten::linear(%x, %w, %b)
// After:
//   %o0 = GetAttr[name="jitquant_observer_0"](%self); %x1 = CallMethod[name="forward"](%o0, %x)
//   %y = aten::linear(%x1, %w, %b)
//
// Needs:  the normal form, which configure decides on.
// Leaves: attributes and constants.

#include <unordered_map>

#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

void appendTensors(Value* value, std::vector<Value*>& tensors) {
  const auto kind = value->node()->kind();
  if (kind == c10::prim::ListConstruct && !isTensor(value)) {
    for (Value* element : value->node()->inputs()) appendTensors(element, tensors);
  } else if (isTensor(value) && kind != c10::prim::GetAttr && kind != c10::prim::Constant) {
    tensors.push_back(value);
  }
}

}  // namespace

std::vector<std::vector<std::string>> watchShapes(Program& program,
                                                  const jit::Module& shape_recorder) {
  std::vector<std::vector<std::string>> observers;
  size_t count = 0;
  for (Method& method : program.methods) {
    auto plan = std::make_shared<Plan>();
    std::unordered_map<const Value*, size_t> watched;  // looked up only
    for (Node* node : listedNodes(method)) {
      std::vector<Value*> tensors;
      for (Value* input : node->inputs()) appendTensors(input, tensors);
      std::vector<std::string>& names = observers.emplace_back();
      for (Value* tensor : tensors) {
        const auto [found, is_new] = watched.emplace(tensor, count);
        if (is_new) {
          plan->shapes_only.push_back(tensor);
          ++count;
        }
        names.push_back(kObserverPrefix + std::to_string(found->second));
      }
    }
    method.plan = std::move(plan);
  }
  insertObservers(program, shape_recorder);
  return observers;
}

}  // namespace jitquant
