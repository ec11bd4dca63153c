#pragma once
// Sizes of images as functions of the sizes of other images, true for every input of a model.

#include <array>
#include <unordered_map>

#include "program.h"

namespace jitquant {

// floor((n + plus) / over), where n is the size of `of` in the same dimension; `plus` without `of`.
struct Size {
  const jit::Value* of;
  int64_t plus;
  int64_t over;

  bool operator==(const Size& other) const {
    return of == other.of && plus == other.plus && over == other.over;
  }
};

using ImageSizes = std::array<Size, 4>;  // batch, channels, height, width

// The sizes that int8 ops give, between lower and fold_prepack. What it cannot follow has sizes of
// its own.
class SymbolicSizes {
 public:
  SymbolicSizes(const Program& program, const Method& method);

  const ImageSizes& of(const jit::Value* value) const { return sizes_.at(value); }
  // A value that was inserted since has the sizes of that one.
  void set(const jit::Value* value, const jit::Value* like) { sizes_[value] = of(like); }

 private:
  void visit(const jit::Node* node);
  std::optional<ImageSizes> sizesOf(const jit::Node* node) const;
  std::optional<ImageSizes> convolved(const jit::Node* conv) const;
  std::optional<ImageSizes> joined(const jit::Node* cat) const;
  ImageSizes broadcast(const jit::Node* node) const;

  const Program& program_;
  std::unordered_map<const jit::Value*, ImageSizes> sizes_;  // looked up only
};

}  // namespace jitquant
