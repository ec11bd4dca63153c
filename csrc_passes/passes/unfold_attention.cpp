// unfold_attention: torch's fused attention kernels become the layers that they stand for, whose
// linears can be int8.
//
// Before, scripted:
//   %y = prim::If(%fast) { %a = aten::_native_multi_head_attention(...); -> (%a) } { ... -> (%b) }
// After:
//   ... %y = %b      the general path of torch.nn, which gives the same values
// Before, traced:
//   %y, %w = aten::_native_multi_head_attention(%x, %x, %x, %dim, %heads, %w_in, %b_in, %w_out,
//   ...)
// After:
//   %h = aten::linear(%x, %w_in, %b_in); %q, %k, %v: heads of %h
//   %a = aten::scaled_dot_product_attention(%q, %k, %v, ...); %y = aten::linear(heads of %a, ...)
//
// Needs:  fold_attributes.
// Leaves: traced kernels with a mask, with different query, key and value, or whose weights of
//         attention are read; branches outside of torch.nn's own modules; models that make nested
//         tensors, which only the fused kernels take.

#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using at::IValue;
using jit::Node;
using jit::Value;

namespace {

const auto kLayer = c10::Symbol::aten("_transformer_encoder_layer_fwd");
const auto kAttention = c10::Symbol::aten("_native_multi_head_attention");

bool isFused(const Node* node) { return node->kind() == kLayer || node->kind() == kAttention; }

// Whether the node is code of torch.nn's own attention.
bool isOfTorch(const Node* node, const jit::Module& root) {
  const std::string path = modulePath(node);
  jit::Module module = root;
  if (!path.empty()) {
    const auto [owner, name] = ownerOf(root, path);
    if (!owner.hasattr(name) || !owner.attr(name).isModule()) return false;
    module = owner.attr(name).toModule();
  }
  const std::string type = module.type()->name() ? module.type()->name()->qualifiedName() : "";
  return type.find("torch.nn.modules.transformer.") != std::string::npos ||
         type.find("torch.nn.modules.activation.") != std::string::npos;
}

// Lets the If around a fused kernel take its other branch, the general path.
bool takeGeneralPath(Node* fused, const jit::Module& root) {
  Node* branch = fused->owningBlock()->owningNode();
  if (branch == nullptr || branch->kind() != c10::prim::If || !isOfTorch(fused, root)) return false;
  Value* condition = branch->input(0);
  if (condition->node()->kind() == c10::prim::Param) return false;
  const bool is_first = branch->blocks()[0] == fused->owningBlock();
  // Its other users ask whether this branch returned.
  condition->replaceAllUsesWith(insertConstantBefore(condition->node(), !is_first));
  return true;
}

// Writes the layers before the fused kernel.
class Unfolder {
 public:
  explicit Unfolder(Node* fused) : fused_(fused) {}

  // (batch, length, dim) to the same.
  Value* attention(Value* x, size_t first_weight, int64_t dim, int64_t heads) {
    const auto in = fused_->inputs();
    Value* all = op("aten::linear", {x, in[first_weight], in[first_weight + 1]});
    const std::vector<int64_t> sizes{3, heads, dim / heads};
    all = op("aten::unflatten", {all, number(-1), constant(sizes)});
    all = op("aten::permute", {all, constant(std::vector<int64_t>{2, 0, 3, 1, 4})});
    std::vector<Value*> args;
    for (const int64_t i : {0, 1, 2}) {
      args.push_back(op("aten::select", {all, number(0), number(i)}));
    }
    args.insert(args.end(), {constant(IValue()), constant(0.0), constant(false), constant(IValue()),
                             constant(false)});
    Value* attended = op("aten::scaled_dot_product_attention", args);
    attended = op("aten::transpose", {attended, number(1), number(2)});
    attended = op("aten::flatten", {attended, number(2), number(3)});
    return op("aten::linear", {attended, in[first_weight + 2], in[first_weight + 3]});
  }

  Value* layer(int64_t dim, int64_t heads, bool gelu, bool norm_first) {
    Value* x = fused_->input(0);
    Value* attended = attention(norm_first ? norm(x, 10, dim) : x, 3, dim, heads);
    x = op("aten::add", {x, attended, number(1)});
    if (!norm_first) x = norm(x, 10, dim);
    Value* wide = linear(norm_first ? norm(x, 12, dim) : x, 14);
    wide = gelu ? op("aten::gelu", {wide, constant("none")}) : op("aten::relu", {wide});
    x = op("aten::add", {x, linear(wide, 16), number(1)});
    return norm_first ? x : norm(x, 12, dim);
  }

 private:
  Value* op(const char* kind, const std::vector<Value*>& inputs) {
    return insertOp(fused_, c10::Symbol::fromQualString(kind), inputs);
  }
  Value* constant(const IValue& value) { return insertConstantBefore(fused_, value); }
  Value* number(int64_t value) { return constant(value); }
  Value* linear(Value* x, size_t weight) {
    return op("aten::linear", {x, fused_->input(weight), fused_->input(weight + 1)});
  }
  Value* norm(Value* x, size_t weight, int64_t dim) {
    return op("aten::layer_norm", {x, constant(std::vector<int64_t>{dim}), fused_->input(weight),
                                   fused_->input(weight + 1), fused_->input(9), constant(false)});
  }

  Node* fused_;
};

void unfoldLayer(Node* node) {
  const auto dim = constantNumber(node->input(1));
  const auto heads = constantNumber(node->input(2));
  const auto gelu = constantNumber(node->input(7));
  const auto norm_first = constantNumber(node->input(8));
  if (!dim || !heads || !gelu || !norm_first || !isNone(node->input(18))) return;
  Value* result = Unfolder(node).layer(static_cast<int64_t>(*dim), static_cast<int64_t>(*heads),
                                       *gelu != 0.0, *norm_first != 0.0);
  replaceAndDestroy(node, result);
}

void unfoldMultiHeadAttention(Node* node) {
  const auto dim = constantNumber(node->input(3));
  const auto heads = constantNumber(node->input(4));
  const bool is_self = node->input(0) == node->input(1) && node->input(0) == node->input(2);
  const bool plain = is_self && isNone(node->input(9)) && !node->output(1)->hasUses();
  if (!dim || !heads || !plain) return;
  Value* result = Unfolder(node).attention(node->input(0), 5, static_cast<int64_t>(*dim),
                                           static_cast<int64_t>(*heads));
  node->output(0)->replaceAllUsesWith(result);
  node->destroy();
}

bool makesNestedTensors(const std::vector<Node*>& nodes) {
  return std::any_of(nodes.begin(), nodes.end(), [](const Node* node) {
    return node->kind() == c10::Symbol::aten("_nested_tensor_from_mask");
  });
}

}  // namespace

void unfoldAttention(Program& program) {
  for (Method& method : program.methods) {
    const std::vector<Node*> nodes = allNodes(*method.graph);
    if (std::none_of(nodes.begin(), nodes.end(), isFused) || makesNestedTensors(nodes)) continue;
    for (Node* node : nodes) {
      if (!isFused(node) || takeGeneralPath(node, program.module)) continue;
      if (node->kind() == kLayer) {
        unfoldLayer(node);
      } else {
        unfoldMultiHeadAttention(node);
      }
    }
    jit::ConstantPropagation(method.graph, /*ignore_custom_classes=*/true);
    jit::LowerSimpleTuples(method.graph);
    jit::EliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
