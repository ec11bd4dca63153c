#include "namespaces.h"

#include <torch/csrc/jit/api/function_impl.h>

#include "ir_util.h"

namespace jitquant {

namespace {

// Of a class that C++ code registers: "quantized" of __torch__.torch.classes.quantized.Conv2d.
void addClasses(const c10::TypePtr& type, std::set<std::string>& namespaces) {
  static const std::string prefix = "__torch__.torch.classes.";
  const auto object = type->cast<c10::ClassType>();
  if (!object) {
    for (const c10::TypePtr& inner : type->containedTypes()) addClasses(inner, namespaces);
    return;
  }
  if (!object->name()) return;
  const std::string name = object->name()->qualifiedName();
  if (name.rfind(prefix, 0) != 0) return;
  namespaces.insert(name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size()));
}

}  // namespace

std::set<std::string> namespacesOf(const jit::Module& module) {
  std::set<std::string> namespaces;
  for (const jit::Function* method : module.type()->methods()) {
    for (const jit::Node* node : allNodes(*jit::toGraphFunction(*method).graph())) {
      namespaces.insert(node->kind().ns().toUnqualString());
      for (const jit::Value* output : node->outputs()) addClasses(output->type(), namespaces);
    }
  }
  return namespaces;
}

}  // namespace jitquant
