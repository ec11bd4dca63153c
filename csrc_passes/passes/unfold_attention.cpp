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
// A mask (of type 0: pairs, 1: padded keys, 2: both) is true where nothing is attended to:
//   %b = aten::to(%mask, bool); %n = aten::logical_not(%b)     for the kernel that takes %n
// A row of which all is masked gives zeros, as in the general path; the fused kernels give NaN.
//
// Needs:  fold_attributes; pad_nested, since only the fused kernels take nested tensors.
// Leaves: kernels whose sizes or type of mask are computed at run time; branches outside of
//         torch.nn's own modules; models that make nested tensors of their own.

#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include "dead_code.h"
#include "fold_constants.h"
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
  const std::string type = moduleClass(node, root);
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

// Where the fused kernels have what they share.
struct Places {
  size_t dim, heads, first_weight, mask, mask_type;
};
constexpr Places kInLayer{1, 2, 3, 18, 19};
constexpr Places kInAttention{3, 4, 5, 9, 12};

// Writes the layers before the fused kernel.
class Unfolder {
 public:
  Unfolder(Node* fused, const Places& at) : fused_(fused), at_(at) {}

  // Whether all that decides on the layers is constant.
  bool isPossible() const {
    const auto is_known = [&](size_t i) { return constantNumber(fused_->input(i)).has_value(); };
    const bool has_mask = !isNone(fused_->input(at_.mask));
    return is_known(at_.dim) && is_known(at_.heads) && (!has_mask || is_known(at_.mask_type));
  }

  // Three times (batch, length, dim) to the same.
  Value* attention(const std::vector<Value*>& from) {
    std::vector<Value*> args = projections(from);
    args.insert(args.end(),
                {allowed(), constant(0.0), constant(false), constant(IValue()), constant(false)});
    return joinHeads(op("aten::scaled_dot_product_attention", args));
  }

  // The same, and the weights: (batch, heads, length, length), or the mean over the heads.
  std::pair<Value*, Value*> attentionAndWeights(const std::vector<Value*>& from, bool average) {
    const std::vector<Value*> all = projections(from);
    Value* q = op("aten::mul", {all[0], constant(1.0 / std::sqrt(sizeOfHead()))});
    Value* weights =
        op("aten::matmul", {q, op("aten::transpose", {all[1], number(-2), number(-1)})});
    if (Value* mask = blocked()) {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      weights = op("aten::masked_fill", {weights, mask, constant(-kInfinity)});
    }
    weights = op("aten::softmax", {weights, number(-1), constant(IValue())});
    Value* result = joinHeads(op("aten::matmul", {weights, all[2]}));
    if (average) {
      const std::vector<int64_t> heads{1};
      weights = op("aten::mean", {weights, constant(heads), constant(false), constant(IValue())});
    }
    return {result, weights};
  }

  Value* layer(bool gelu, bool norm_first) {
    const auto attend = [&](Value* x) { return attention({x, x, x}); };
    Value* x = fused_->input(0);
    Value* attended = attend(norm_first ? norm(x, 10) : x);
    x = op("aten::add", {x, attended, number(1)});
    if (!norm_first) x = norm(x, 10);
    Value* wide = linear(norm_first ? norm(x, 12) : x, 14);
    wide = gelu ? op("aten::gelu", {wide, constant("none")}) : op("aten::relu", {wide});
    x = op("aten::add", {x, linear(wide, 16), number(1)});
    return norm_first ? x : norm(x, 12);
  }

 private:
  Value* op(const char* kind, const std::vector<Value*>& inputs) {
    return insertOp(fused_, c10::Symbol::fromQualString(kind), inputs);
  }
  Value* constant(const IValue& value) { return insertConstantBefore(fused_, value); }
  Value* number(int64_t value) { return constant(value); }
  int64_t numberAt(size_t i) const {
    return static_cast<int64_t>(*constantNumber(fused_->input(i)));
  }
  int64_t sizeOfHead() const { return numberAt(at_.dim) / numberAt(at_.heads); }

  Value* linear(Value* x, size_t weight) {
    return op("aten::linear", {x, fused_->input(weight), fused_->input(weight + 1)});
  }
  Value* norm(Value* x, size_t weight) {
    const std::vector<int64_t> dim{numberAt(at_.dim)};
    return op("aten::layer_norm", {x, constant(dim), fused_->input(weight),
                                   fused_->input(weight + 1), fused_->input(9), constant(false)});
  }

  // Query, key and value: (batch, heads, length, dim of a head).
  std::vector<Value*> projections(const std::vector<Value*>& from) {
    const bool is_self = from[0] == from[1] && from[0] == from[2];
    std::vector<Value*> results;
    Value* all = nullptr;
    if (is_self) {
      const std::vector<int64_t> sizes{3, numberAt(at_.heads), sizeOfHead()};
      all = op("aten::unflatten", {linear(from[0], at_.first_weight), number(-1), constant(sizes)});
      all = op("aten::permute", {all, constant(std::vector<int64_t>{2, 0, 3, 1, 4})});
    }
    for (const int64_t i : {0, 1, 2}) {
      results.push_back(is_self ? op("aten::select", {all, number(0), number(i)})
                                : projection(from[i], i));
    }
    return results;
  }

  Value* projection(Value* x, int64_t i) {
    std::vector<Value*> args{x};
    for (const size_t input : {at_.first_weight, at_.first_weight + 1}) {
      const int64_t dim = numberAt(at_.dim);
      args.push_back(
          op("aten::narrow", {fused_->input(input), number(0), number(i * dim), number(dim)}));
    }
    const std::vector<int64_t> sizes{numberAt(at_.heads), sizeOfHead()};
    Value* heads = op("aten::unflatten", {op("aten::linear", args), number(-1), constant(sizes)});
    return op("aten::transpose", {heads, number(1), number(2)});
  }

  Value* joinHeads(Value* attended) {
    attended = op("aten::transpose", {attended, number(1), number(2)});
    attended = op("aten::flatten", {attended, number(2), number(3)});
    return linear(attended, at_.first_weight + 2);
  }

  // True where nothing is attended to; (batch or 1, heads or 1, length or 1, length) or without
  // the first two. Null without a mask.
  Value* blocked() {
    Value* mask = fused_->input(at_.mask);
    if (isNone(mask)) return nullptr;
    mask = op("aten::to", {mask, constant(static_cast<int64_t>(at::kBool)), constant(false),
                           constant(false), constant(IValue())});
    constexpr int64_t kOfPaddedKeys = 1;  // (batch, length)
    if (numberAt(at_.mask_type) != kOfPaddedKeys) return mask;
    return op("aten::unsqueeze", {op("aten::unsqueeze", {mask, number(1)}), number(1)});
  }
  Value* allowed() {
    Value* mask = blocked();
    return mask == nullptr ? constant(IValue()) : op("aten::logical_not", {mask});
  }

  Node* fused_;
  Places at_;
};

void unfoldLayer(Node* node) {
  const auto gelu = constantNumber(node->input(7));
  const auto norm_first = constantNumber(node->input(8));
  Unfolder unfolder(node, kInLayer);
  if (!gelu || !norm_first || !unfolder.isPossible()) return;
  replaceAndDestroy(node, unfolder.layer(*gelu != 0.0, *norm_first != 0.0));
}

void unfoldMultiHeadAttention(Node* node) {
  const bool reads_weights = node->output(1)->hasUses();
  const auto needs_weights = constantNumber(node->input(10));
  const auto average = constantNumber(node->input(11));
  Unfolder unfolder(node, kInAttention);
  if (!unfolder.isPossible() || (reads_weights && !(needs_weights == 1.0 && average))) return;
  const std::vector<Value*> from = node->inputs().slice(0, 3).vec();
  if (reads_weights) {
    const auto [result, weights] = unfolder.attentionAndWeights(from, *average != 0.0);
    node->output(0)->replaceAllUsesWith(result);
    node->output(1)->replaceAllUsesWith(weights);
  } else {
    node->output(0)->replaceAllUsesWith(unfolder.attention(from));
  }
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
    renewKeptLists(*method.graph);
    jit::LowerSimpleTuples(method.graph);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
