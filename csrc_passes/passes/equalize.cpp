// equalize: factors of channels move between two layers, so that the ranges of their weights agree.
//
// Before:
//   %y = aten::conv2d(%x, %w, %b, ...); %r = aten::relu(%y); %z = aten::conv2d(%r, %v, %c, ...)
// After, for each channel i between them:
//   %y = aten::conv2d(%x, %w / s, %b / s, ...); %r = aten::relu(%y)
//   %z = aten::conv2d(%r, %v * s, %c, ...)      s_i = sqrt(max|w_i| / max|v_i|)
//
// Needs:  fold_conv_bn.
// Leaves: layers between which another op or reader is (next_layer.h). A weight or bias that is
//         computed at run time, or that something else reads. Channels that one of the two weights
//         has only zeros for. An activation that clips at another value than 0: a channel's factor
//         would move that bound; on request relu6 and its like become relu instead.
//
// Nagel et al. 2019 (arXiv 1906.04721), section 4.1. A layer in the middle is scaled on both sides,
// so the pairs are visited in turn until no factor changes by more than 0.1 %. Factors are kept in
// float64 and applied once.
//
// The bias of a channel grows with its weights. Where those are tiny and the bias is not (a channel
// that is nearly constant), it would take the range of the activation from all others. So no bias
// grows beyond the layer's largest one, times the median of the factors if they grow all together.
// Section 4.1.3 of the paper moves such biases into the next layer instead, which is exact only
// where relu never clips.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "ir_util.h"
#include "next_layer.h"
#include "op_table.h"
#include "passes/accuracy.h"
#include "weight_uses.h"

namespace jitquant {

using at::Tensor;
using jit::Node;

namespace {

constexpr int kMostSweeps = 100;
constexpr double kAtRest = 1e-3;

struct Layer {
  const WeightUses* uses;
  bool transposed;
  int64_t groups;
  Tensor weight;      // as it is
  Tensor magnitudes;  // (groups, inputs / groups, outputs / groups) float64: greatest |w|
  Tensor bias;        // (outputs,) float64: |b|
  Tensor input_factor, output_factor;  // (inputs,) and (outputs,) float64

  // A weight of this layer as (groups, inputs / groups, outputs / groups, kernel).
  Tensor grouped(const Tensor& w) const {
    if (transposed) return w.reshape({groups, w.size(0) / groups, w.size(1), -1});
    return w.reshape({groups, w.size(0) / groups, w.size(1), -1}).transpose(1, 2);
  }
  Tensor byInput() const { return input_factor.reshape({groups, -1, 1}); }
  Tensor byOutput() const { return output_factor.reshape({groups, 1, -1}); }
  // Greatest |w| of each channel, with the factors so far.
  Tensor inputRange() const { return (magnitudes * byOutput()).amax(2).flatten() * input_factor; }
  Tensor outputRange() const { return (magnitudes * byInput()).amax(1).flatten() * output_factor; }

  // (outputs,): these factors of outputs, but none that makes a bias too large.
  Tensor withinBias(const Tensor& factors) const {
    const double largest = bias.max().item<double>();
    const double common = std::max(1.0, factors.median().item<double>());
    const Tensor highest = at::where(bias > 0, largest * common / bias, HUGE_VAL);
    return at::minimum(factors, highest);
  }

  Tensor scaledWeight() const {
    const Tensor factors = (byInput() * byOutput()).unsqueeze(3);
    Tensor scaled = grouped(weight.detach()).to(at::kDouble) * factors;
    if (!transposed) scaled = scaled.transpose(1, 2);
    return scaled.reshape(weight.sizes()).to(weight.scalar_type());
  }
};

// nullopt for a layer whose weight and bias must stay as they are.
std::optional<Layer> readLayer(const WeightUses& uses, const WeightReaders& readers,
                               const jit::Module& module) {
  const Node* first = uses.layers[0];
  const auto weight = constantTensor(first->input(1), module);
  if (!weight || weight->scalar_type() != at::kFloat || weight->numel() == 0) return std::nullopt;
  const auto bias = constantTensor(first->input(2), module);
  if (!isNone(first->input(2)) && !bias) return std::nullopt;
  const bool is_linear = first->kind() == c10::aten::linear;
  const auto groups = is_linear ? 1.0 : constantNumber(first->input(6));
  if (!groups || weight->dim() < 2) return std::nullopt;
  for (const Node* layer : uses.layers) {
    const bool alike = layer->kind() == first->kind() &&
                       (is_linear || constantNumber(layer->input(6)) == groups) &&
                       haveOneBias(layer, first, module);
    if (!alike) return std::nullopt;
  }
  if (readers.hasOthers(uses)) return std::nullopt;
  Layer layer{&uses, isConvTranspose(first), static_cast<int64_t>(*groups), *weight, {}, {}, {},
              {}};
  const Tensor magnitudes = layer.grouped(weight->detach().abs()).amax(3).to(at::kDouble);
  if (!magnitudes.isfinite().all().item<bool>()) return std::nullopt;
  layer.magnitudes = magnitudes;
  layer.input_factor = at::ones({magnitudes.size(0) * magnitudes.size(1)}, at::kDouble);
  layer.output_factor = at::ones({magnitudes.size(0) * magnitudes.size(2)}, at::kDouble);
  layer.bias = bias ? bias->detach().abs().to(at::kDouble) : at::zeros_like(layer.output_factor);
  if (!layer.bias.isfinite().all().item<bool>()) return std::nullopt;
  return layer;
}

struct Pair {
  size_t giver, taker;        // indices of layers
  std::vector<Node*> bounds;  // activations between them that clip at another value than 0
};

// The layer that alone reads what a layer gives, at every place where the model calls it.
std::optional<Pair> pairOf(size_t giver, const std::vector<std::optional<Layer>>& layers,
                           const std::unordered_map<const Node*, size_t>& index_of,
                           const jit::Module& module) {
  std::optional<Pair> pair;
  for (const Node* node : layers[giver]->uses->layers) {
    const NextLayer next = nextLayer(node, module);
    const auto found = index_of.find(next.layer);
    if (found == index_of.end() || found->second == giver) return std::nullopt;
    if (!pair) pair = Pair{giver, found->second, {}};
    if (pair->taker != found->second) return std::nullopt;
    pair->bounds.insert(pair->bounds.end(), next.bounds.begin(), next.bounds.end());
  }
  const bool takes_nothing_else =
      layers[pair->taker]->uses->layers.size() == layers[giver]->uses->layers.size();
  return takes_nothing_else ? pair : std::nullopt;
}

bool clipsAtZeroAndAbove(const Node* activation) {
  const auto bounds = activationBounds(activation);
  return bounds->first == 0.0 && bounds->second > 0.0;
}

// Moves the factors of one pair; gives the greatest change of any, as a logarithm.
double equalizePair(Layer& giver, Layer& taker) {
  const Tensor given = giver.outputRange(), taken = taker.inputRange();
  const Tensor live = (given > 0).logical_and(taken > 0);
  const Tensor wanted = at::where(live, (given / taken).sqrt(), at::ones_like(given));
  const Tensor output_factor = giver.withinBias(giver.output_factor / wanted);
  const Tensor factor = giver.output_factor / output_factor;
  giver.output_factor = output_factor;
  taker.input_factor = taker.input_factor * factor;
  return factor.log().abs().max().item<double>();
}

void apply(const Layer& layer, const jit::Module& module) {
  const Node* first = layer.uses->layers[0];
  setSharedInput(*layer.uses, 1, layer.scaledWeight(), module);
  if (isNone(first->input(2))) return;
  const Tensor bias = *constantTensor(first->input(2), module);
  const Tensor scaled = bias.detach().to(at::kDouble) * layer.output_factor;
  setSharedInput(*layer.uses, 2, scaled.to(bias.scalar_type()), module);
}

}  // namespace

Equalized equalize(Program& program, bool unbound) {
  const WeightReaders readers(program);
  std::vector<std::optional<Layer>> layers;
  std::unordered_map<const Node*, size_t> index_of;  // looked up only
  for (const WeightUses& uses : readers.weights()) {
    auto layer = readLayer(uses, readers, program.module);
    for (const Node* node : uses.layers) {
      if (layer) index_of[node] = layers.size();
    }
    layers.push_back(std::move(layer));
  }
  Equalized count;
  std::vector<Pair> pairs;
  for (size_t i = 0; i < layers.size(); ++i) {
    auto pair = layers[i] ? pairOf(i, layers, index_of, program.module) : std::nullopt;
    if (!pair) continue;
    const bool may_unbound =
        unbound && std::all_of(pair->bounds.begin(), pair->bounds.end(), clipsAtZeroAndAbove);
    if (pair->bounds.empty() || may_unbound) {
      pairs.push_back(*std::move(pair));
    } else {
      ++count.bounded;
    }
  }
  double change = 1.0;
  for (int sweep = 0; sweep < kMostSweeps && change > kAtRest; ++sweep) {
    change = 0.0;
    for (const Pair& pair : pairs) {
      change = std::max(change, equalizePair(*layers[pair.giver], *layers[pair.taker]));
    }
  }
  for (const Pair& pair : pairs) {
    for (Node* bound : pair.bounds) replaceWithOp(bound, c10::aten::relu, {bound->input(0)});
  }
  std::vector<bool> changed(layers.size());
  for (const Pair& pair : pairs) changed[pair.giver] = changed[pair.taker] = true;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (changed[i]) apply(*layers[i], program.module);
  }
  count.pairs = static_cast<int64_t>(pairs.size());
  return count;
}

}  // namespace jitquant
