// pad_nested: the nested tensors inside of torch.nn.TransformerEncoder stay padded, and the padding
// is masked.
//
// Before, traced:
//   %v = aten::logical_not(%mask); %n = aten::_nested_tensor_from_mask(%x, %v, %false)
//   %m = aten::_transformer_encoder_layer_fwd(%n, ..., None, None)
//   %y = aten::to_padded_tensor(%m, 0., %size)
// After:
//   %m = aten::_transformer_encoder_layer_fwd(%x, ..., %mask, 1)
//   %b = aten::to(%mask, bool); %y = aten::masked_fill(%m, aten::unsqueeze(%b, -1), 0.)
//
// Scripted, the branch that makes the nested tensor gives the layers no mask: now it does.
//
// Needs:  fold_attributes and resolve_asserts.
// Leaves: nested tensors of other modules.

#include <map>

#include "fold_constants.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

const auto kNest = c10::Symbol::aten("_nested_tensor_from_mask");
const auto kPad = c10::Symbol::aten("to_padded_tensor");
const auto kLayer = c10::Symbol::aten("_transformer_encoder_layer_fwd");
constexpr size_t kMask = 18;
constexpr size_t kMaskType = 19;

struct Nested {
  std::vector<Node*> makers, padders;
};

Value* withoutCasts(Value* value) {
  while (value->node()->kind() == c10::prim::unchecked_cast) value = value->node()->input();
  return value;
}

// The mask, true or -inf at the padding, whose negation says what is nested.
Value* maskOf(Node* maker) {
  Node* negation = maker->input(1)->node();
  if (negation->kind() != c10::aten::logical_not) return nullptr;
  return withoutCasts(negation->input());
}

// Whether the value is there whenever `reader` runs.
bool isVisible(const Value* value, const Node* reader) {
  const jit::Block* block = reader->owningBlock();
  while (block != value->node()->owningBlock()) {
    const Node* owner = block->owningNode();
    if (owner == nullptr) return false;
    block = owner->owningBlock();
  }
  return value->node()->kind() == c10::prim::Param || value->node()->isBefore(reader);
}

bool isPair(Node* maker, const Node* padder) {
  const Value* mask = maskOf(maker);
  return mask != nullptr && isVisible(mask, maker) && isVisible(mask, padder) &&
         maker->isBefore(padder) && constantNumber(padder->input(1)) == 0.0;
}

// The fused layers that read the nested tensor.
void maskLayers(const Value* nested, Value* mask) {
  for (const jit::Use& use : nested->uses()) {
    Node* layer = use.user;
    if (layer->kind() != kLayer || use.offset != 0 || !isNone(layer->input(kMask))) continue;
    constexpr int64_t kOfPaddedKeys = 1;
    layer->replaceInput(kMask, mask);
    layer->replaceInput(kMaskType, insertConstantBefore(layer, kOfPaddedKeys));
    maskLayers(layer->output(), mask);
  }
}

// Where the branch that nests gives None, and the other one the mask, both give the mask.
void maskBranch(Node* maker, Value* mask) {
  Node* branch = maker->owningBlock()->owningNode();
  if (branch == nullptr || branch->kind() != c10::prim::If) return;
  const bool is_first = branch->blocks()[0] == maker->owningBlock();
  jit::Block* nesting = branch->blocks()[is_first ? 0 : 1];
  jit::Block* other = branch->blocks()[is_first ? 1 : 0];
  for (size_t i = 0; i < branch->outputs().size(); ++i) {
    const bool gives_mask = withoutCasts(other->outputs()[i]) == mask;
    if (isNone(nesting->outputs()[i]) && gives_mask) nesting->replaceOutput(i, mask);
  }
}

void rewrite(Node* maker, Node* padder) {
  Value* mask = maskOf(maker);
  maskLayers(maker->output(), mask);
  maskBranch(maker, mask);
  replaceAndDestroy(maker, maker->input(0));
  const auto constant = [&](const at::IValue& value) {
    return insertConstantBefore(padder, value);
  };
  if (!isTensor(mask)) {
    mask = insertOp(padder, c10::prim::unchecked_cast, {mask});
    mask->setType(c10::TensorType::get());
  }
  mask = insertOp(padder, c10::aten::to,
                  {mask, constant(static_cast<int64_t>(at::kBool)), constant(false),
                   constant(false), constant(at::IValue())});
  mask = insertOp(padder, c10::aten::unsqueeze, {mask, constant(int64_t{-1})});
  replaceWithOp(padder, c10::aten::masked_fill, {padder->input(0), mask, padder->input(1)});
}

}  // namespace

void padNested(Program& program) {
  for (Method& method : program.methods) {
    // By module: each call of an encoder nests once and pads once.
    std::map<std::string, Nested> found;
    for (Node* node : allNodes(*method.graph)) {
      if (node->kind() != kNest && node->kind() != kPad) continue;
      const std::string type = moduleClass(node, program.module);
      if (type.find("torch.nn.modules.transformer.TransformerEncoder") == std::string::npos)
        continue;
      Nested& nested = found[modulePath(node)];
      (node->kind() == kNest ? nested.makers : nested.padders).push_back(node);
    }
    for (const auto& [path, nested] : found) {
      if (nested.makers.size() != nested.padders.size()) continue;
      for (size_t i = 0; i < nested.makers.size(); ++i) {
        if (isPair(nested.makers[i], nested.padders[i])) {
          rewrite(nested.makers[i], nested.padders[i]);
        }
      }
    }
    if (!found.empty()) foldConstants(method.graph);
  }
}

}  // namespace jitquant
