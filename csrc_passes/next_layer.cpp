#include "next_layer.h"

#include <algorithm>
#include <optional>

#include "ir_util.h"
#include "op_table.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Where a tensor has its channels.
struct Layout {
  int64_t spatial = 0;  // dimensions behind them; 0: they are last
  bool one_pixel = false;
};

// The dimensions of an op like "aten::max_pool2d"; 0 for other ops.
int64_t poolDimensions(const Node* node) {
  const std::string name = node->kind().toUnqualString();
  for (const char* pool : {"max_pool", "avg_pool", "adaptive_avg_pool"}) {
    for (int64_t n = 1; n <= 3; ++n) {
      if (name == pool + std::to_string(n) + "d") return n;
    }
  }
  return 0;
}

std::optional<Layout> behindPool(const Node* pool, Layout layout) {
  if (poolDimensions(pool) != layout.spatial) return std::nullopt;
  const bool adaptive = std::string(pool->kind().toUnqualString()).starts_with("adaptive");
  const auto size = constantInts(pool->input(1));
  layout.one_pixel =
      adaptive && size && std::all_of(size->begin(), size->end(), [](int64_t n) { return n == 1; });
  return layout;
}

// The mean of all spatial dimensions, and of no others.
std::optional<Layout> behindMean(const Node* mean, const Layout& layout) {
  auto dims = constantInts(mean->input(1));
  const auto keep = constantNumber(mean->input(2));
  if (!dims || !keep || !isNone(mean->input(3))) return std::nullopt;
  // From the front, they are those of batched input; other input has no such dimension.
  for (int64_t& dim : *dims) dim = dim < 0 ? dim + layout.spatial : dim - 2;
  std::sort(dims->begin(), dims->end());
  for (int64_t i = 0; i < layout.spatial; ++i) {
    if (dims->size() != static_cast<size_t>(layout.spatial) || (*dims)[i] != i) return std::nullopt;
  }
  return *keep != 0.0 ? Layout{layout.spatial, true} : Layout{};
}

bool padsBehindChannels(const Node* node, const Layout& layout) {
  if (!padsWithZero(node)) return false;
  const auto pads = constantInts(node->input(1));
  return pads && pads->size() <= 2 * static_cast<size_t>(layout.spatial);
}

// Of (N, C, 1, ...) these leave rows of C, or what no linear layer of C inputs takes.
bool reshapes(const Node* node) {
  const auto kind = node->kind();
  return kind == c10::aten::flatten || kind == c10::aten::reshape || kind == c10::aten::view ||
         kind == c10::aten::squeeze;
}

// The layout behind an op with the property of nextLayer; nullopt for all others.
std::optional<Layout> behind(const Node* node, const Layout& layout) {
  const auto kind = node->kind();
  if (isRelu(node) || kind == c10::aten::leaky_relu || kind == c10::aten::prelu) return layout;
  if (layout.spatial == 0) return std::nullopt;
  if (padsBehindChannels(node, layout)) return Layout{layout.spatial, false};
  if (kind == c10::aten::mean && node->inputs().size() == 4) return behindMean(node, layout);
  if (layout.one_pixel && reshapes(node)) return Layout{};
  return behindPool(node, layout);
}

std::optional<int64_t> inputChannels(const Node* layer, const Layout& layout,
                                     const jit::Module& module) {
  const auto weight = constantTensor(layer->input(1), module);
  if (!weight || weight->dim() != layout.spatial + 2) return std::nullopt;
  if (isConvTranspose(layer)) return weight->size(0);
  if (!isConv(layer)) return weight->size(1);
  const auto groups = constantNumber(layer->input(6));
  if (!groups) return std::nullopt;
  return weight->size(1) * static_cast<int64_t>(*groups);
}

std::optional<int64_t> outputChannels(const Node* layer, const jit::Module& module) {
  const auto weight = constantTensor(layer->input(1), module);
  if (!weight || weight->dim() < 2) return std::nullopt;
  if (!isConvTranspose(layer)) return weight->size(0);
  const auto groups = constantNumber(layer->input(6));
  if (!groups) return std::nullopt;
  return weight->size(1) * static_cast<int64_t>(*groups);
}

// The only reader of a value, besides those of its shape, if it reads it as its first input.
Node* onlyReader(const Value* value) {
  Node* reader = nullptr;
  for (const jit::Use& use : value->uses()) {
    if (readsOnlyShape(use.user)) continue;
    if (reader != nullptr || use.offset != 0) return nullptr;
    reader = use.user;
  }
  return reader;
}

}  // namespace

bool readsOnlyShape(const Node* node) {
  const OpRow* row = findRow(node);
  return row != nullptr && row->role == Role::kMetadata;
}

bool padsWithZero(const Node* node) {
  if (node->kind() == c10::aten::constant_pad_nd) return constantNumber(node->input(2)) == 0.0;
  if (node->kind() != c10::aten::pad) return false;
  const auto mode = jit::toIValue(node->input(2));
  if (!mode || !mode->isString() || mode->toStringRef() != "constant") return false;
  return isNone(node->input(3)) || constantNumber(node->input(3)) == 0.0;
}

NextLayer nextLayer(const Node* layer, const jit::Module& module) {
  const auto channels = outputChannels(layer, module);
  if (!channels) return {};
  Layout layout{constantTensor(layer->input(1), module)->dim() - 2, false};
  NextLayer next;
  const Value* value = layer->output();
  while (Node* reader = onlyReader(value)) {
    if (isLayer(reader)) {
      if (inputChannels(reader, layout, module) == channels) next.layer = reader;
      return next;
    }
    const auto bounds = activationBounds(reader);
    if (bounds && !isRelu(reader)) {
      next.bounds.push_back(reader);
    } else if (const auto after = behind(reader, layout)) {
      layout = *after;
    } else {
      return next;
    }
    value = reader->output();
  }
  return next;
}

}  // namespace jitquant
