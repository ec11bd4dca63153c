// rewrite_pixel_shuffle: behind a convolution, a pixel shuffle becomes a rearrangement of rows, for
// which the convolution gives its channels in another order.
//
// Before, with factor 2 and C channels behind it:
//   %c = aten::conv2d(%x, %w, %b, ...); %r = aten::relu(%c); %y = aten::pixel_shuffle(%r, 2)
// After, with the rows of %v in the order (2, 2, C), where those of %w are in the order (C, 2, 2):
//   %c = aten::conv2d(%x, %v, %u, ...); %r = aten::relu(%c)
//   %p = aten::unflatten(%r, -3, [2, 2, C])          (..., 2, 2, C, H, W)
//   %m = aten::movedim(%p, ...)                      (..., H, 2, W, 2, C)
//   %f = aten::flatten(%m, ...), twice               (..., 2 H, 2 W, C)
//   %n = aten::movedim(%f, -1, -3); %y = aten::clone(%n, contiguous)
//
// Needs:  fold_conv_bn and configure.
// Leaves: pixel shuffles of what no convolution gives, or something else reads too.
//
// Int8 convolutions leave channels last in memory, so that this copies runs of 2 C values. The
// clone keeps the float model's layout; in int8 it costs nothing.

#include <ATen/ATen.h>

#include <map>

#include "channels.h"
#include "dead_code.h"
#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

using Ints = std::vector<int64_t>;

class Rewriter {
 public:
  explicit Rewriter(Program& program) : program_(program) {}

  void rewrite(Node* shuffle) {
    const auto factor = constantInts(shuffle->input(1));
    if (!factor || factor->size() != 1 || isLeftFloat(shuffle)) return;
    Node* conv = channelGiver(shuffle->input(0), program_.module);
    if (conv == nullptr || conv->owningBlock() != shuffle->owningBlock()) return;
    const int64_t r = (*factor)[0];
    const int64_t channels = constantTensor(conv->input(1), program_.module)->size(0);
    if (r < 2 || channels % (r * r) != 0) return;
    for (const size_t index : {1, 2}) reorder(conv, index, r * r);
    arrange(shuffle, r, channels / (r * r));
  }

 private:
  // The rows of a weight or bias from (channels, phases) to (phases, channels), as an attribute
  // beside the old one that is made once for all equal uses.
  void reorder(Node* conv, size_t index, int64_t phases) {
    if (isNone(conv->input(index))) return;
    const at::Tensor rows = constantTensor(conv->input(index), program_.module)->detach();
    const auto path = attributePath(conv->input(index));
    const std::string source = path.value_or(index == 1 ? "weight" : "bias");
    std::string unnamed;  // a constant has no name by which to find it again
    std::string& name = path ? made_[source + " " + std::to_string(phases)] : unnamed;
    if (name.empty()) {
      const auto [owner, leaf] = ownerOf(program_.module, source);
      name = source.substr(0, source.size() - leaf.size()) +
             freeAttributeName(owner, leaf + "_by_phase");
      const at::Tensor split = rows.unflatten(0, {-1, phases});
      setTensorAttribute(program_.module, name, split.transpose(0, 1).flatten(0, 1).contiguous());
    }
    conv->replaceInput(index,
                       insertAttributeRead(*conv->owningGraph(), name, program_.module, conv));
  }

  // Dimensions are counted from the end, since the input may come without a batch.
  static void arrange(Node* shuffle, int64_t r, int64_t channels) {
    Value* value = shuffle->input(0);
    const auto append = [&](c10::Symbol kind, const std::vector<at::IValue>& arguments) {
      std::vector<Value*> inputs{value};
      for (const at::IValue& argument : arguments) {
        inputs.push_back(insertConstantBefore(shuffle, argument));
      }
      value = insertOp(shuffle, kind, inputs);
    };
    append(c10::aten::unflatten, {int64_t{-3}, Ints{r, r, channels}});
    append(c10::aten::movedim, {Ints{-2, -5, -1, -4, -3}, Ints{-5, -4, -3, -2, -1}});
    append(c10::aten::flatten, {int64_t{-3}, int64_t{-2}});
    append(c10::aten::flatten, {int64_t{-4}, int64_t{-3}});
    append(c10::aten::movedim, {Ints{-1}, Ints{-3}});
    append(c10::aten::clone, {static_cast<int64_t>(at::MemoryFormat::Contiguous)});
    value->copyMetadata(shuffle->output());
    replaceAndDestroy(shuffle, value);
  }

  Program& program_;
  std::map<std::string, std::string> made_;  // looked up only
};

}  // namespace

void rewritePixelShuffle(Program& program) {
  Rewriter rewriter(program);
  for (Method& method : program.methods) {
    const auto shuffles = [](const Node* node) { return node->kind() == c10::aten::pixel_shuffle; };
    for (Node* node : nodesWhere(*method.graph, shuffles)) rewriter.rewrite(node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
