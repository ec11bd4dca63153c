// fold_conv_bn: BatchNorm in eval mode goes into the convolution, transposed convolution or linear
// before it.
//
// Before:
//   %c = aten::conv2d(%x, %w, %b, ...); %y = aten::batch_norm(%c, %g, %h, %mean, %var, %false, ...)
// After:
//   %y = aten::conv2d(%x, %w', %b', ...)      w' = w * g / sqrt(var + eps)
//                                             b' = (b - mean) * g / sqrt(var + eps) + h
//
// BatchNorm normalizes dimension 1. That is the channels of a linear for input (N, C) only, and
// those of a 1-d convolution for batched input only. Other input is valid there where it happens to
// have as many rows as channels, and then the folded op is preceded by
//   %d = aten::dim(%x); if %d != 3: raise
//
// Needs:  canonicalize and canonicalize_linear.
// Leaves: a convolution whose output has another user, or whose weight is also used without this
//         BatchNorm, in any method. A pair of which the configuration leaves one float.
//
// The formula is that of Jacob et al. 2018 (arXiv 1712.05877), section 3.2, computed in float64.

#include <ATen/ATen.h>

#include <algorithm>

#include "dead_code.h"
#include "ir_util.h"
#include "next_layer.h"
#include "op_table.h"
#include "passes/passes.h"
#include "weight_uses.h"

namespace jitquant {

using at::Tensor;
using jit::Node;
using jit::Value;

namespace {

// The BatchNorm that alone consumes the convolution's values, or null.
Node* onlyBatchNorm(const Node* conv) {
  Node* norm = nullptr;
  for (const jit::Use& use : conv->output()->uses()) {
    if (readsOnlyShape(use.user)) continue;
    const bool fits = norm == nullptr && use.user->kind() == c10::aten::batch_norm &&
                      use.offset == 0 && use.user->owningBlock() == conv->owningBlock();
    if (!fits) return nullptr;
    norm = use.user;
  }
  return norm;
}

struct BatchNorm {
  std::optional<Tensor> gamma, beta;
  Tensor mean, var;
  double eps;
};

std::optional<BatchNorm> readBatchNorm(const Node* node, const jit::Module& module) {
  const auto mean = constantTensor(node->input(3), module);
  const auto var = constantTensor(node->input(4), module);
  const auto eps = constantNumber(node->input(7));
  if (!mean || !var || !eps) return std::nullopt;
  BatchNorm bn{std::nullopt, std::nullopt, *mean, *var, *eps};
  if (!isNone(node->input(1)) && !(bn.gamma = constantTensor(node->input(1), module))) {
    return std::nullopt;
  }
  if (!isNone(node->input(2)) && !(bn.beta = constantTensor(node->input(2), module))) {
    return std::nullopt;
  }
  return bn;
}

bool sameBatchNorm(const Node* a, const Node* b, const jit::Module& module) {
  for (const size_t i : {1, 2, 3, 4}) {
    if (isNone(a->input(i)) && isNone(b->input(i))) continue;
    if (identityOf(a->input(i), module) != identityOf(b->input(i), module)) return false;
  }
  return constantNumber(a->input(7)) == constantNumber(b->input(7));
}

// The groups of a transposed convolution, whose weight is (in, out / groups, kernel...); 0 for
// every other op, whose weight has its output channels first; -1 if they are not known.
int64_t transposedGroups(const Node* conv) {
  if (!isConvTranspose(conv)) return 0;
  return static_cast<int64_t>(constantNumber(conv->input(6)).value_or(-1));
}

// The factor of each output channel in a shape that multiplies the weight.
Tensor broadcastable(const Tensor& factor, const Tensor& weight, int64_t groups) {
  std::vector<int64_t> per_channel(weight.dim(), 1);
  if (groups == 0) {
    per_channel[0] = -1;
    return factor.reshape(per_channel);
  }
  per_channel[0] = groups;
  per_channel[1] = weight.size(1);
  return factor.reshape(per_channel).repeat_interleave(weight.size(0) / groups, 0);
}

Tensor toFloat64(const Tensor& tensor) { return tensor.detach().to(at::kDouble); }

// A few rows at a time: float64 of all would leave gaps in memory between the weights.
Tensor scaled(const Tensor& weight, const Tensor& factors) {
  constexpr int64_t kNumbers = 1 << 14;
  Tensor result = at::empty_like(weight);
  const int64_t row_size =
      std::max<int64_t>(1, weight.numel() / std::max<int64_t>(1, weight.size(0)));
  const int64_t step = std::max<int64_t>(1, kNumbers / row_size);
  for (int64_t row = 0; row < weight.size(0); row += step) {
    const int64_t rows = std::min(step, weight.size(0) - row);
    const auto part = [&](const Tensor& tensor) { return tensor.narrow(0, row, rows); };
    part(result).copy_(toFloat64(part(weight)) * part(factors));
  }
  return result;
}

std::pair<Tensor, Tensor> fold(const Tensor& weight, const std::optional<Tensor>& bias,
                               const BatchNorm& bn, int64_t groups) {
  Tensor factor = at::rsqrt(toFloat64(bn.var) + bn.eps);
  if (bn.gamma) factor = factor * toFloat64(*bn.gamma);
  const Tensor folded_weight = scaled(weight, broadcastable(factor, weight, groups));
  Tensor folded_bias =
      ((bias ? toFloat64(*bias) : at::zeros_like(factor)) - toFloat64(bn.mean)) * factor;
  if (bn.beta) folded_bias = folded_bias + toFloat64(*bn.beta);
  return {folded_weight, folded_bias.to(weight.scalar_type())};
}

// Raises before `conv` where the input's rank is not the one for which BatchNorm was folded.
void insertRankCheck(Node* conv, int64_t rank) {
  jit::Graph& graph = *conv->owningGraph();
  const auto insert = [&](c10::Symbol kind, const std::vector<Value*>& inputs, size_t outputs) {
    return copyOrigin(graph.create(kind, inputs, outputs), conv);
  };
  Node* dim = insert(c10::aten::dim, {conv->input(0)}, 1)->insertBefore(conv);
  dim->output()->setType(c10::IntType::get());
  Value* wanted = insertConstantBefore(conv, rank);
  Node* differs = insert(c10::aten::ne, {dim->output(), wanted}, 1)->insertBefore(conv);
  differs->output()->setType(c10::BoolType::get());
  Value* message =
      insertConstantBefore(conv, describe(conv) + " takes input of rank " + std::to_string(rank) +
                                     " only, since the BatchNorm behind it was folded into it");
  Value* no_class = insertConstantBefore(conv, at::IValue());
  Node* branch = insert(c10::prim::If, {differs->output()}, 0)->insertBefore(conv);
  branch->addBlock()->appendNode(insert(c10::prim::RaiseException, {message, no_class}, 0));
  branch->addBlock();
}

void foldUses(const WeightUses& uses, const WeightReaders& readers, const jit::Module& module) {
  Node* first_conv = uses.layers[0];
  Node* first_bn = onlyBatchNorm(first_conv);
  if (first_bn == nullptr) return;
  for (const Node* conv : uses.layers) {
    const Node* bn = onlyBatchNorm(conv);
    if (bn != nullptr && (isLeftFloat(conv) || isLeftFloat(bn))) return;
    if (bn == nullptr || !sameBatchNorm(bn, first_bn, module)) return;
    if (!haveOneBias(conv, first_conv, module)) return;
  }
  const auto weight = constantTensor(first_conv->input(1), module);
  const auto bias = constantTensor(first_conv->input(2), module);
  const auto bn = readBatchNorm(first_bn, module);
  if (!weight || !bn || (!bias && !isNone(first_conv->input(2)))) return;
  if (readers.hasOthers(uses)) return;
  const int64_t groups = transposedGroups(first_conv);
  for (const Node* conv : uses.layers) {
    if (conv->kind() != first_conv->kind() || transposedGroups(conv) != groups) return;
  }
  if (groups < 0 || weight->dim() < 2) return;
  const int64_t channels = groups == 0 ? weight->size(0) : weight->size(1) * groups;
  if (bn->mean.numel() != channels) return;  // it normalizes another dimension
  const auto [folded_weight, folded_bias] = fold(*weight, bias, *bn, groups);

  setSharedInput(uses, 1, folded_weight, module);
  setSharedInput(uses, 2, folded_bias, module);
  for (Node* conv : uses.layers) {
    replaceAndDestroy(onlyBatchNorm(conv), conv->output());
    if (weight->dim() <= 3) insertRankCheck(conv, weight->dim());
  }
}

}  // namespace

void foldConvBn(Program& program) {
  const WeightReaders readers(program);
  for (const WeightUses& uses : readers.weights()) foldUses(uses, readers, program.module);
  for (Method& method : program.methods) eliminateDeadCode(method.graph);
}

}  // namespace jitquant
