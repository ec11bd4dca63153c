// freeze: weights become constants, and attributes that nothing reads go.
//
// Before:
//   %w = GetAttr[name="weight"](%conv); %wq = aten::quantize_per_channel(%w, ...)
// After:
//   %w = prim::Constant[value=<Tensor>](); %wq = aten::quantize_per_channel(%w, ...)
//
// Needs:  fuse. libtorch's freeze_module does the work.
// Leaves: attributes that a method sets, and those in `preserved`.

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/freeze_module.h>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

namespace {

// Freezing would make a constant of an object, and lose what its methods change.
void appendObjectPaths(const jit::Module& module, const std::string& prefix,
                       std::vector<std::string>& paths) {
  const auto type = module.type();
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    const std::string path = prefix + type->getAttributeName(i);
    const auto attribute = type->getAttribute(i)->cast<c10::ClassType>();
    if (!attribute) continue;
    if (attribute->is_module()) {
      appendObjectPaths(module.attr(type->getAttributeName(i)).toModule(), path + ".", paths);
    } else if (module._ivalue()->getSlot(i).isObject()) {
      paths.push_back(path);
    }
  }
}

}  // namespace

void freeze(Program& program, const std::vector<std::string>& preserved) {
  for (Method& method : program.methods) stripMarks(*method.graph);
  std::vector<std::string> kept = preserved;
  for (const Method& method : program.methods) {
    if (method.name != "forward") kept.push_back(method.name);
  }
  appendObjectPaths(program.module, "", kept);
  program.module = jit::freeze_module(program.module, kept);
  for (Method& method : program.methods) {
    method.graph = jit::toGraphFunction(program.module.get_method(method.name).function()).graph();
    method.plan = nullptr;
  }
  ownState(program);  // the graphs are new, and their reads unmarked
}

}  // namespace jitquant
