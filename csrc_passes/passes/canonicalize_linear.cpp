// canonicalize_linear: every spelling of a fully connected layer becomes aten::linear.
//
// Before:
//   %wt = aten::t(%w); %y = aten::addmm(%b, %x, %wt, %one, %one)
//   %z = aten::matmul(%y, %u); %r = aten::add(%z, %c, %one)
// After:
//   %y = aten::linear(%x, %w, %b); %r = aten::linear(%y, %u_transposed, %c)
//
// Needs:  fold_attributes and functionalize.
// Leaves: products with a computed right side, and biases that are not one value per output.

#include <map>

#include "dead_code.h"
#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

using Transposed = std::map<std::string, std::string>;  // looked up only

bool isMatrixTranspose(const Node* node) {
  if (node->kind() == c10::aten::t || node->kind() == c10::aten::numpy_T) return true;
  if (node->kind() == c10::aten::transpose) {
    const auto a = constantNumber(node->input(1));
    const auto b = constantNumber(node->input(2));
    // 0 and -2 name the same dimension of a matrix.
    return a && b && (static_cast<int64_t>(*a) + 2) % 2 != (static_cast<int64_t>(*b) + 2) % 2;
  }
  if (node->kind() != c10::aten::permute) return false;
  const auto order = constantInts(node->input(1));
  return order && order->size() == 2 && ((*order)[0] + 2) % 2 == 1;
}

// The (out, in) weight behind the right operand of a product, as a value; null if computed.
// `transposed` holds the attribute made for each weight's path.
Value* weightOf(Value* right, Node* product, Program& program, jit::Graph& graph,
                Transposed& transposed) {
  const Node* producer = right->node();
  if (!producer->inputs().empty() && isMatrixTranspose(producer)) {
    Value* weight = producer->input(0);
    const auto tensor = constantTensor(weight, program.module);
    return tensor && tensor->dim() == 2 ? weight : nullptr;
  }
  const auto tensor = constantTensor(right, program.module);
  if (!tensor || tensor->dim() != 2) return nullptr;
  const auto path = attributePath(right);
  std::string unnamed;
  std::string& made = path ? transposed[*path] : unnamed;
  if (made.empty()) {
    const std::string wish = path.value_or("weight") + "_transposed";
    const auto [owner, name] = ownerOf(program.module, wish);
    made = wish.substr(0, wish.size() - name.size()) + freeAttributeName(owner, name);
    setTensorAttribute(program.module, made, tensor->detach().t().contiguous());
  }
  return insertAttributeRead(graph, made, program.module, product);
}

bool isBiasOf(const Value* bias, const at::Tensor& weight, const jit::Module& module) {
  const auto tensor = constantTensor(bias, module);
  return tensor && tensor->dim() == 1 && tensor->size(0) == weight.size(0) &&
         tensor->scalar_type() == weight.scalar_type();
}

void replaceWithLinear(Node* old, Node* product, Value* x, Value* weight, Value* bias) {
  Node* linear = old->owningGraph()->create(c10::aten::linear, {x, weight, bias});
  copyOrigin(linear, product)->insertBefore(old);
  replaceAndDestroy(old, linear->output());
}

bool isOne(const Value* value) { return constantNumber(value) == 1.0; }

void rewriteAddmm(Node* node, Program& program, jit::Graph& graph, Transposed& transposed) {
  if (!isOne(node->input(3)) || !isOne(node->input(4))) return;
  Value* weight = weightOf(node->input(2), node, program, graph, transposed);
  if (weight == nullptr) return;
  if (!isBiasOf(node->input(0), *constantTensor(weight, program.module), program.module)) return;
  replaceWithLinear(node, node, node->input(1), weight, node->input(0));
}

void rewriteMatmul(Node* node, Program& program, jit::Graph& graph, Transposed& transposed) {
  if (constantTensor(node->input(0), program.module)) return;
  Value* weight = weightOf(node->input(1), node, program, graph, transposed);
  if (weight == nullptr) return;
  Value* x = node->input(0);
  if (hasOneUse(node->output())) {
    Node* add = node->output()->uses()[0].user;
    if (add->kind() == c10::aten::add && add->inputs().size() == 3 && isOne(add->input(2)) &&
        add->owningBlock() == node->owningBlock()) {
      Value* other = add->input(0) == node->output() ? add->input(1) : add->input(0);
      if (isBiasOf(other, *constantTensor(weight, program.module), program.module)) {
        replaceWithLinear(add, node, x, weight, other);
        node->destroy();
        return;
      }
    }
  }
  replaceWithLinear(node, node, x, weight, insertConstantBefore(node, at::IValue()));
}

bool isProduct(const Node* node) {
  return node->kind() == c10::aten::addmm || node->kind() == c10::aten::matmul ||
         node->kind() == c10::aten::mm;
}

}  // namespace

void canonicalizeLinear(Program& program) {
  Transposed transposed;
  for (Method& method : program.methods) {
    for (Node* node : nodesWhere(*method.graph, isProduct)) {
      if (node->kind() == c10::aten::addmm) {
        rewriteAddmm(node, program, *method.graph, transposed);
      } else {
        rewriteMatmul(node, program, *method.graph, transposed);
      }
    }
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
