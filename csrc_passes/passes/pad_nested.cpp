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
// Scripted, the branch that makes the nested tensor gives the layers no mask: now it does. The mask
// may have come there through branches that say why not to nest. Where padding does not stand at
// the end, nested tensors hold other tokens than the mask leaves; padded ones do not.
//
// Needs:  fold_attributes and resolve_asserts.
// Leaves: nested tensors of other modules, and those that other ops than the layers read.

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

// What a value is behind casts, and behind branches that give the same either way.
const Value* sourceOf(const Value* value) {
  while (value->node()->kind() == c10::prim::unchecked_cast) value = value->node()->input();
  const Node* node = value->node();
  if (node->kind() != c10::prim::If) return value;
  const Value* first = sourceOf(node->blocks()[0]->outputs()[value->offset()]);
  const Value* second = sourceOf(node->blocks()[1]->outputs()[value->offset()]);
  return first == second ? first : value;
}

// The mask, true or -inf at the padding, whose negation says what is nested.
Value* maskOf(Node* maker) {
  Node* negation = maker->input(1)->node();
  if (negation->kind() != c10::aten::logical_not) return nullptr;
  Value* mask = negation->input();
  while (mask->node()->kind() == c10::prim::unchecked_cast) mask = mask->node()->input();
  return mask;
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

// Where the branch that nests gives None, and the other one the mask: the outputs of the branch.
std::vector<size_t> unmasked(Node* maker, const Value* mask) {
  std::vector<size_t> found;
  Node* branch = maker->owningBlock()->owningNode();
  if (branch == nullptr || branch->kind() != c10::prim::If) return found;
  const bool is_first = branch->blocks()[0] == maker->owningBlock();
  const jit::Block* nesting = branch->blocks()[is_first ? 0 : 1];
  const jit::Block* other = branch->blocks()[is_first ? 1 : 0];
  for (size_t i = 0; i < branch->outputs().size(); ++i) {
    const bool gives_mask = sourceOf(other->outputs()[i]) == sourceOf(mask);
    if (isNone(nesting->outputs()[i]) && gives_mask) found.push_back(i);
  }
  return found;
}

bool readsUnmasked(const jit::Use& use) {
  return use.user->kind() == kLayer && use.offset == 0 && isNone(use.user->input(kMask));
}

// Whether all that reads the nested tensor, until it is padded, can be given the mask.
bool readersTakeMask(const Value* nested, const Node* padder, bool branch_takes_mask) {
  for (const jit::Use& use : nested->uses()) {
    if (use.user == padder || (use.user->kind() == c10::prim::Return && branch_takes_mask))
      continue;
    if (!readsUnmasked(use)) return false;
    if (!readersTakeMask(use.user->output(), padder, branch_takes_mask)) return false;
  }
  return true;
}

bool isPair(Node* maker, const Node* padder) {
  Value* mask = maskOf(maker);
  return mask != nullptr && isVisible(mask, maker) && isVisible(mask, padder) &&
         maker->isBefore(padder) && constantNumber(padder->input(1)) == 0.0 &&
         readersTakeMask(maker->output(), padder, !unmasked(maker, mask).empty());
}

// The fused layers that read the nested tensor.
void maskLayers(const Value* nested, Value* mask) {
  for (const jit::Use& use : nested->uses()) {
    if (!readsUnmasked(use)) continue;
    Node* layer = use.user;
    constexpr int64_t kOfPaddedKeys = 1;
    layer->replaceInput(kMask, mask);
    layer->replaceInput(kMaskType, insertConstantBefore(layer, kOfPaddedKeys));
    maskLayers(layer->output(), mask);
  }
}

void rewrite(Node* maker, Node* padder) {
  Value* mask = maskOf(maker);
  maskLayers(maker->output(), mask);
  for (size_t i : unmasked(maker, mask)) maker->owningBlock()->replaceOutput(i, mask);
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
