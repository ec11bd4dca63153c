// canonicalize_einsum: an einsum that multiplies the last dimension with a constant matrix becomes
// aten::matmul.
//
// Before:
//   %y = aten::einsum("bnd,de->bne", [%x, %w], None); %z = aten::einsum("...d,ed->...e", [%y, %u])
// After:
//   %y = aten::matmul(%x, %w); %ut = aten::t(%u); %z = aten::matmul(%y, %ut)
//
// Needs:  fold_attributes. canonicalize_linear makes layers of the products.
// Leaves: every other einsum.

#include <algorithm>

#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

struct Equation {
  std::string left, right, result;
};

// "a b, b c -> a c" without spaces, cut at the comma and the arrow. An ellipsis becomes one dot.
std::optional<Equation> parse(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
  for (size_t dots = text.find("..."); dots != std::string::npos; dots = text.find("...")) {
    text.replace(dots, 3, ".");
  }
  const size_t comma = text.find(',');
  const size_t arrow = text.find("->");
  if (comma == std::string::npos || arrow == std::string::npos || arrow < comma) return {};
  return Equation{text.substr(0, comma), text.substr(comma + 1, arrow - comma - 1),
                  text.substr(arrow + 2)};
}

bool hasLettersTwice(std::string letters) {
  std::sort(letters.begin(), letters.end());
  return std::adjacent_find(letters.begin(), letters.end()) != letters.end();
}

// Whether the equation is "*k,km->*m" (false) or "*k,mk->*m" (true: the matrix is transposed).
std::optional<bool> transposesMatrix(const Equation& equation) {
  const auto& [left, right, result] = equation;
  if (left.empty() || right.size() != 2 || hasLettersTwice(left) || hasLettersTwice(right)) {
    return std::nullopt;
  }
  const char summed = left.back();
  const size_t place = right.find(summed);
  if (place == std::string::npos || summed == '.' || right.find('.') != std::string::npos) {
    return std::nullopt;
  }
  const char made = right[1 - place];
  const std::string wanted = left.substr(0, left.size() - 1) + made;
  if (left.find(made) != std::string::npos || result != wanted) return std::nullopt;
  return place == 1;
}

void rewrite(Node* node, const jit::Module& module) {
  const auto text = jit::toIValue(node->input(0));
  const Node* list = node->input(1)->node();
  if (!text || !text->isString() || list->kind() != c10::prim::ListConstruct) return;
  if (list->inputs().size() != 2) return;
  auto equation = parse(text->toStringRef());
  if (!equation) return;
  Value* x = list->input(0);
  Value* matrix = list->input(1);
  if (constantTensor(x, module)) {
    std::swap(x, matrix);
    std::swap(equation->left, equation->right);
  }
  const auto tensor = constantTensor(matrix, module);
  const auto transposed = transposesMatrix(*equation);
  if (!tensor || tensor->dim() != 2 || constantTensor(x, module) || !transposed) return;
  if (*transposed) matrix = insertOp(node, c10::aten::t, {matrix});
  replaceWithOp(node, c10::aten::matmul, {x, matrix});
}

}  // namespace

void canonicalizeEinsum(Program& program) {
  for (Method& method : program.methods) {
    const auto is_einsum = [](const Node* node) { return node->kind() == c10::aten::einsum; };
    for (Node* node : nodesWhere(*method.graph, is_einsum)) rewrite(node, program.module);
  }
}

}  // namespace jitquant
