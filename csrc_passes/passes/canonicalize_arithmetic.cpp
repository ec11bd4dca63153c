// canonicalize_arithmetic: differences become sums, and constants become what a row takes.
//
// Before:
//   %a = aten::sub(%x, %half, %one); %b = aten::rsub(%a, %one, %one)
//   %c = aten::sub(%b, %y, %one); %d = aten::mul(%scale, %c)     %scale has no dimensions
//   %e = aten::sub(%d, %mean, %one); %f = aten::div(%e, %std)    constants
// After:
//   %a = aten::add(%x, -0.5, %one)
//   %m = aten::add(%a, -1, %one); %b = aten::neg(%m)
//   %c = aten::add(%b, %y, -1); %d = aten::mul(%c, 0.25)
//   %e = aten::add(%d, %mean_negated, %one); %f = aten::mul(%e, %std_reciprocal)
//
// Needs:  functionalize, so that no op here works in place.
// Leaves: numbers that are computed at run time. Divisions by a number: they have a row of their
//         own, since a product with the reciprocal is a last bit off, which a floor would show.
//
// The dtypes of tensors are not known, so each spelling has to promote and wrap integers as the one
// before: %x - %y is no sum with aten::neg(%y), which is wrong where %y is uint8 and %x is float.

#include <ATen/ATen.h>

#include <map>

#include "dead_code.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using at::IValue;
using jit::Node;
using jit::Value;

namespace {

bool isNumber(const Value* value) { return constantNumber(value).has_value(); }

// -True is an error, and a negative uint8 wraps.
bool isSigned(const IValue& number) {
  if (number.isBool()) return false;
  if (!number.isTensor()) return true;
  const auto dtype = number.toTensor().scalar_type();
  return dtype != at::kBool && at::isSignedType(dtype);
}

double asDouble(const IValue& number) {
  return number.isTensor() ? number.toTensor().item<double>() : number.toScalar().toDouble();
}

// Keeps the kind and dtype of `number`, on which type promotion depends.
IValue times(const IValue& number, const IValue& factor) {
  if (number.isTensor()) return number.toTensor() * factor.toScalar();
  if (number.isInt() && factor.isInt()) return number.toInt() * factor.toInt();
  return asDouble(number) * asDouble(factor);
}

class Rewriter {
 public:
  explicit Rewriter(Program& program) : program_(program) {}

  void rewrite(Node* node) {
    const auto kind = node->kind();
    const bool is_sum = kind == c10::aten::add || kind == c10::aten::sub || kind == c10::aten::rsub;
    const bool is_known = is_sum || kind == c10::aten::mul || kind == c10::aten::div;
    if (!is_known || !isTensor(node->output()) || !isTensor(node->input(0))) return;
    for (const size_t i : {0, 1}) readAsNumber(node, i);
    if (kind != c10::aten::rsub) readTracedNumber(node);
    if (isNumber(node->input(0)) && isNumber(node->input(1))) return;
    if (is_sum) {
      rewriteSum(node);
    } else if (kind == c10::aten::mul && isNumber(node->input(0))) {
      replaceWithOp(node, kind, {node->input(1), node->input(0)});
    } else if (kind == c10::aten::div && node->inputs().size() == 2) {
      rewriteDivision(node);
    }
  }

 private:
  // An attribute without dimensions counts as a number in type promotion.
  void readAsNumber(Node* node, size_t index) {
    const auto tensor = constantTensor(node->input(index), program_.module);
    if (!tensor || tensor->dim() != 0 || tensor->scalar_type() != at::kFloat) return;
    if (isNumber(node->input(index))) return;
    node->replaceInput(index, insertConstantBefore(node, tensor->detach().clone()));
  }

  // Tracing keeps a number in a float64 tensor, which in an archive no longer is a mere number:
  // with another tensor without dimensions it gives float64. torch's executor reads it as a number
  // again.
  static void readTracedNumber(Node* node) {
    const auto constant = jit::toIValue(node->input(1));
    if (!constant || !constant->isTensor()) return;
    const at::Tensor& tensor = constant->toTensor();
    if (tensor.dim() != 0 || tensor.scalar_type() != at::kDouble) return;
    node->replaceInput(1, insertConstantBefore(node, tensor.item<double>()));
  }

  void rewriteSum(Node* node) {
    const bool reversed = node->kind() == c10::aten::rsub;
    Value* first = node->input(reversed ? 1 : 0);
    Value* second = node->input(reversed ? 0 : 1);
    const auto alpha = jit::toIValue(node->input(2));
    if (!alpha || !alpha->isScalar() || !isSigned(*alpha)) return;
    const IValue factor = node->kind() == c10::aten::add ? *alpha : times(*alpha, int64_t{-1});
    if (isNumber(first)) {
      rewriteReversed(node, first, second, factor);
    } else if (isNumber(second)) {
      if (asDouble(factor) != 1.0) replaceWithSum(node, first, product(second, factor, node));
    } else if (!isTensor(first) || !isTensor(second)) {
      return;
    } else if (const auto tensor = constantFloats(second); tensor && asDouble(factor) != 1.0) {
      const std::string suffix = asDouble(factor) == -1.0 ? "negated" : "scaled";
      const at::Tensor scaled = *tensor * factor.toScalar();
      replaceWithSum(node, first, insertDerived(second, scaled, suffix, asDouble(factor), node));
    } else if (node->kind() != c10::aten::add) {
      replaceWithOp(node, c10::aten::add, {first, second, insertConstantBefore(node, factor)});
    }
  }

  // number + tensor is tensor + number, and number - tensor is -(tensor - number).
  static void rewriteReversed(Node* node, Value* number, Value* tensor, const IValue& factor) {
    if (asDouble(factor) == 1.0) replaceWithSum(node, tensor, number);
    if (asDouble(factor) != -1.0) return;
    Value* negated = product(number, factor, node);
    if (negated == nullptr) return;
    Value* sum =
        insertOp(node, c10::aten::add, {tensor, negated, insertConstantBefore(node, int64_t{1})});
    sum->copyMetadata(node->output());
    replaceWithOp(node, c10::aten::neg, {sum});
  }

  // number * factor, or null.
  static Value* product(const Value* number, const IValue& factor, Node* before) {
    const IValue value = *jit::toIValue(number);
    return isSigned(value) ? insertConstantBefore(before, times(value, factor)) : nullptr;
  }

  static void replaceWithSum(Node* node, Value* first, Value* second) {
    if (second == nullptr) return;
    Value* one = insertConstantBefore(node, int64_t{1});
    replaceWithOp(node, c10::aten::add, {first, second, one});
  }

  void rewriteDivision(Node* node) {
    const auto divisor = constantFloats(node->input(1));
    if (!divisor || isNumber(node->input(1))) return;
    const at::Tensor reciprocal = divisor->reciprocal();
    if (!reciprocal.isfinite().all().item<bool>()) return;
    Value* factor = insertDerived(node->input(1), reciprocal, "reciprocal", 0.0, node);
    replaceWithOp(node, c10::aten::mul, {node->input(0), factor});
  }

  std::optional<at::Tensor> constantFloats(const Value* value) const {
    const auto tensor = constantTensor(value, program_.module);
    return tensor && tensor->scalar_type() == at::kFloat ? tensor : std::nullopt;
  }

  // A tensor made of the constant `from`; kept once for each attribute.
  Value* insertDerived(const Value* from, const at::Tensor& tensor, const std::string& suffix,
                       double factor, Node* before) {
    const auto path = attributePath(from);
    if (!path) return insertConstantBefore(before, tensor.detach());
    std::string& derived = derived_[{*path, suffix, factor}];
    if (derived.empty()) {
      const auto [owner, name] = ownerOf(program_.module, *path);
      const std::string prefix = path->substr(0, path->size() - name.size());
      derived = prefix + freeAttributeName(owner, name + "_" + suffix);
      setTensorAttribute(program_.module, derived, tensor.detach());
    }
    return insertAttributeRead(*before->owningGraph(), derived, program_.module, before);
  }

  Program& program_;
  std::map<std::tuple<std::string, std::string, double>, std::string> derived_;  // looked up only
};

}  // namespace

void canonicalizeArithmetic(Program& program) {
  Rewriter rewriter(program);
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) rewriter.rewrite(node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
