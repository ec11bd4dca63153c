#include "packed_weights.h"

#include "targets/reference.h"

namespace jitquant {

namespace {

// The class of packed weights, such as "Conv2dPackedParamsBase"; "" for every other value.
std::string packedClass(const at::IValue& value) {
  static const std::string prefix = "__torch__.torch.classes.quantized.";
  if (!value.isCustomClass()) return "";
  const auto name = value.toObjectRef().type()->name();
  if (!name || name->qualifiedName().rfind(prefix, 0) != 0) return "";
  return name->qualifiedName().substr(prefix.size());
}

// Tables of embeddings are packed alike for all engines.
bool isOfAnEngine(const std::string& name) {
  return name.rfind("Conv", 0) == 0 || name.rfind("Linear", 0) == 0;
}

}  // namespace

std::set<std::string> packedFor(const torch::jit::Module& module) {
  std::set<std::string> engines;
  for (size_t i = 0; i < module.type()->numAttributes(); ++i) {
    const at::IValue& value = module._ivalue()->getSlot(i);
    if (!isOfAnEngine(packedClass(value))) continue;
    const Kernels kernels = kernelsOf(value);
    engines.insert(kernels == Kernels::kOnednn    ? "onednn"
                   : kernels == Kernels::kQnnpack ? "qnnpack"
                                                  : "fbgemm");
  }
  return engines;
}

std::vector<std::string> dropPacked(const torch::jit::Module& module) {
  std::vector<std::string> names;
  const auto type = module.type();
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    if (packedClass(module._ivalue()->getSlot(i)).empty()) continue;
    names.push_back(type->getAttributeName(i));
    module._ivalue()->setSlot(i, at::IValue());
  }
  return names;
}

void takePacked(const torch::jit::Module& from, const torch::jit::Module& to,
                const std::vector<std::string>& names) {
  for (const std::string& name : names) to._ivalue()->setAttr(name, from.attr(name));
}

}  // namespace jitquant
