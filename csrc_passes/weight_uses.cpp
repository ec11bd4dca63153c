#include "weight_uses.h"

#include <algorithm>

#include "ir_util.h"

namespace jitquant {

using jit::Node;
using jit::Value;

Identity identityOf(const Value* value, const jit::Module& module) {
  if (const auto path = attributePath(value)) {
    const auto [owner, name] = ownerOf(module, *path);
    return {owner._ivalue().get(), name};
  }
  return {value, ""};
}

bool haveOneBias(const Node* a, const Node* b, const jit::Module& module) {
  if (isNone(a->input(2)) || isNone(b->input(2))) return isNone(a->input(2)) && isNone(b->input(2));
  return identityOf(a->input(2), module) == identityOf(b->input(2), module);
}

WeightReaders::WeightReaders(const Program& program) : module_(program.module) {
  std::map<Identity, size_t> index_of;  // looked up only
  for (const Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (node->kind() == c10::prim::GetAttr || node->kind() == c10::prim::Constant) {
        const auto& uses = node->output()->uses();
        auto& all = readers_[identityOf(node->output(), module_)];
        all.insert(all.end(), uses.begin(), uses.end());
      }
      if (!isLayer(node)) continue;
      const Identity weight = identityOf(node->input(1), module_);
      const auto [found, is_new] = index_of.emplace(weight, weights_.size());
      if (is_new) weights_.emplace_back();
      weights_[found->second].layers.push_back(node);
      weights_[found->second].graphs.push_back(method.graph.get());
    }
  }
}

bool WeightReaders::hasOthers(const WeightUses& uses) const {
  for (const size_t input : {1, 2}) {
    const Value* value = uses.layers[0]->input(input);
    if (isNone(value)) continue;
    for (const jit::Use& use : readers_.at(identityOf(value, module_))) {
      const bool own =
          std::find(uses.layers.begin(), uses.layers.end(), use.user) != uses.layers.end();
      if (!own || use.offset != input) return true;
    }
  }
  return false;
}

// Where a bias goes: beside the weight, in `bias` if that is free.
static std::string biasPath(const Node* layer, const jit::Module& module) {
  const auto weight_path = attributePath(layer->input(1));
  if (!weight_path) return freeAttributeName(module, "bias");
  const auto [owner, name] = ownerOf(module, *weight_path);
  const std::string prefix = weight_path->substr(0, weight_path->size() - name.size());
  const std::string wish = name == "weight" ? "bias" : name + "_bias";
  if (owner.hasattr(wish) && owner.attr(wish).isNone()) return prefix + wish;
  return prefix + freeAttributeName(owner, wish);
}

// A read of `path` that shares the reads of the modules around it with the read of the weight.
static Value* insertReadBesideWeight(jit::Graph& graph, const std::string& path,
                                     const jit::Module& module, Node* layer) {
  const size_t end = path.rfind('.') + 1;  // 0 for an attribute of the top module
  const auto weight_path = attributePath(layer->input(1));
  const bool is_beside = weight_path && weight_path->rfind('.') + 1 == end &&
                         weight_path->compare(0, end, path, 0, end) == 0;
  if (!is_beside) return insertAttributeRead(graph, path, module, layer);
  const jit::WithInsertPoint guard(layer);
  return graph.insertGetAttr(layer->input(1)->node()->input(), path.substr(end));
}

void setSharedInput(const WeightUses& uses, size_t input, const at::Tensor& value,
                    const jit::Module& module) {
  const Node* first = uses.layers[0];
  const auto attribute = attributePath(first->input(input));
  const std::string path = attribute    ? *attribute
                           : input == 2 ? biasPath(first, module)
                                        : freeAttributeName(module, "weight");
  setTensorAttribute(module, path, value);
  if (attribute) return;
  for (size_t i = 0; i < uses.layers.size(); ++i) {
    Node* layer = uses.layers[i];
    layer->replaceInput(input, insertReadBesideWeight(*uses.graphs[i], path, module, layer));
  }
}

}  // namespace jitquant
