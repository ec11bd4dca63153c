#include "packed_weights.h"

namespace jitquant {

namespace {

constexpr const char* kPackedPrefix = "__torch__.torch.classes.quantized.";

}  // namespace

std::vector<std::string> dropPacked(const torch::jit::Module& module) {
  std::vector<std::string> names;
  const auto type = module.type();
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    const at::IValue& value = module._ivalue()->getSlot(i);
    if (!value.isCustomClass()) continue;
    const auto name = value.toObjectRef().type()->name();
    if (!name || name->qualifiedName().rfind(kPackedPrefix, 0) != 0) continue;
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
