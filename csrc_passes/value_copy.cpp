#include "value_copy.h"

#include <ATen/ATen.h>

namespace jitquant {

using at::IValue;

bool isTorchbind(const c10::ClassType& type) {
  return type.name() && type.name()->qualifiedName().rfind("__torch__.torch.classes.", 0) == 0;
}

IValue ValueCopy::copy(const IValue& value) {
  if (value.isTensor() && value.toTensor().defined()) return copyTensor(value.toTensor());
  if (value.isList()) {
    auto result = c10::impl::GenericList(remap_(value.toList().elementType()));
    for (const IValue& element : value.toListRef()) result.push_back(copy(element));
    return result;
  }
  if (value.isGenericDict()) {
    const auto dict = value.toGenericDict();
    auto result = c10::impl::GenericDict(remap_(dict.keyType()), remap_(dict.valueType()));
    for (const auto& entry : dict) result.insert(copy(entry.key()), copy(entry.value()));
    return result;
  }
  if (value.isTuple()) {
    std::vector<IValue> elements;
    for (const IValue& element : value.toTupleRef().elements()) elements.push_back(copy(element));
    const auto type = remap_(value.toTupleRef().type())->expect<c10::TupleType>();
    return c10::ivalue::Tuple::createNamed(std::move(elements), type);
  }
  if (value.isObject() && !isTorchbind(*value.toObjectRef().type())) return copyObject(value);
  return value;
}

at::Tensor ValueCopy::copyTensor(const at::Tensor& original) {
  const auto [found, is_new] = tensors_.emplace(original.unsafeGetTensorImpl(), at::Tensor());
  if (!is_new) return found->second;
  at::Tensor result = original.detach();
  if (original.has_storage()) {
    c10::StorageImpl* storage = original.storage().unsafeGetStorageImpl();
    if (clones_storage_(storage)) result = viewOfClone(result, storage);
  }
  found->second = result.requires_grad_(original.requires_grad());
  return found->second;
}

at::Tensor ValueCopy::viewOfClone(const at::Tensor& tensor, const c10::StorageImpl* storage) {
  at::Tensor& clone = clones_[storage];
  if (!clone.defined()) {
    const auto elements = static_cast<int64_t>(storage->nbytes() / tensor.dtype().itemsize());
    clone = tensor.as_strided({elements}, {1}, 0).clone();
  }
  // Not a view in autograd's eyes, which forbids to write those of no_grad mode.
  return clone.as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset())
      .variable_data();
}

IValue ValueCopy::copyObject(const IValue& value) {
  const auto original = value.toObject();
  const auto found = objects_.find(original.get());
  if (found != objects_.end()) return found->second;
  const auto type = remap_(original->type())->expect<c10::ClassType>();
  auto result = c10::ivalue::Object::create(c10::StrongTypePtr(unit_, type), type->numAttributes());
  objects_.emplace(original.get(), result);
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    result->setSlot(i, copy(original->getSlot(i)));
  }
  return result;
}

}  // namespace jitquant
