#pragma once
// Deep copies of attribute values, in which what shared memory before shares memory again.

#include <torch/csrc/jit/api/compilation_unit.h>

#include <functional>
#include <memory>
#include <unordered_map>

#include "program.h"

namespace jitquant {

class ValueCopy {
 public:
  using Remap = std::function<c10::TypePtr(const c10::TypePtr&)>;
  using StorageFilter = std::function<bool(c10::StorageImpl*)>;

  // `unit` owns the classes that `remap` gives. Tensors are new ones on the same storage, unless
  // `clones` says that their storage is to be cloned, which happens once for all that view it.
  ValueCopy(std::shared_ptr<jit::CompilationUnit> unit, Remap remap, StorageFilter clones)
      : unit_(std::move(unit)), remap_(std::move(remap)), clones_storage_(std::move(clones)) {}

  at::IValue copy(const at::IValue& value);

 private:
  at::Tensor copyTensor(const at::Tensor& original);
  at::Tensor viewOfClone(const at::Tensor& tensor, const c10::StorageImpl* storage);
  at::IValue copyObject(const at::IValue& value);

  std::shared_ptr<jit::CompilationUnit> unit_;
  Remap remap_;
  StorageFilter clones_storage_;
  // Keyed by identity and only looked up.
  std::unordered_map<const c10::ivalue::Object*, c10::intrusive_ptr<c10::ivalue::Object>> objects_;
  std::unordered_map<const c10::TensorImpl*, at::Tensor> tensors_;
  std::unordered_map<const c10::StorageImpl*, at::Tensor> clones_;
};

// Whether a class is one of C++ (torch::class_), whose objects are shared and never copied.
bool isTorchbind(const c10::ClassType& type);

}  // namespace jitquant
