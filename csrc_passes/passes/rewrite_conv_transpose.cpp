// rewrite_conv_transpose: a transposed convolution becomes a convolution and a rearrangement, since
// stock int8 kernels for transposed convolutions are wrong for most shapes.
//
// Before:
//   %y = aten::conv_transpose2d(%x, %w, %b, [2, 2], [1, 1], [0, 0], 1, [1, 1])   kernel 4, C
//   channels %r = aten::relu(%y)
// After, with %v the weight %w split into 4 kernels of 2 (see conv_transpose.h):
//   %c = aten::conv2d(%x, %v, %u, [1, 1], [1, 1], [1, 1], 1); %a = aten::relu(%c)
//   %p = aten::unflatten(%a, -3, [2, 2, C])          (..., 2, 2, C, H, W)
//   %m = aten::movedim(%p, ...)                      (..., H, 2, W, 2, C)
//   %f = aten::flatten(%m, ...) for each dimension   (..., 2 H, 2 W, C)
//   %n = aten::movedim(%f, -1, -3)                   (..., C, 2 H, 2 W)
//   %s = aten::slice(%n, ...) for each dimension; %r = aten::clone(%s, contiguous)
//
// Needs:  fold_conv_bn and configure.
// Leaves: those for which whyNotConvolution has a reason, and those whose qconfig is None.
//
// Channels come last in the rearrangement, as in int8 convolutions, so that it copies runs of
// 2 C values once. The clone keeps the float model's layout; in int8 it costs nothing.

#include <ATen/ATen.h>

#include <limits>
#include <map>

#include "conv_transpose.h"
#include "dead_code.h"
#include "ir_util.h"
#include "nodes.h"
#include "op_table.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

using Ints = std::vector<int64_t>;

// The attributes that hold the weights and biases made; looked up only.
using Made = std::map<std::string, std::string>;

// Inserts ops that inherit the origin of one node.
class Builder {
 public:
  Builder(Node* after, const Node* origin) : origin_(origin), last_(after) {}

  Value* insert(c10::Symbol kind, Value* input, const std::vector<at::IValue>& arguments) {
    Node* node = copyOrigin(last_->owningGraph()->create(kind, {input}), origin_);
    node->insertAfter(last_);
    for (const at::IValue& argument : arguments) {
      node->addInput(insertConstantBefore(node, argument));
    }
    last_ = node;
    return node->output();
  }

 private:
  const Node* origin_;
  Node* last_;
};

class Rewriter {
 public:
  Rewriter(Program& program, jit::Graph& graph, Made& made)
      : program_(program), graph_(graph), made_(made) {}

  void rewrite(Node* old) {
    const SubPixel form = *subPixelForm(old, program_.module);
    const at::Tensor weight = *constantTensor(old->input(1), program_.module);
    const auto bias = constantTensor(old->input(2), program_.module);
    const auto rank = static_cast<int64_t>(form.stride.size());
    Node* conv = graph_.create(
        c10::Symbol::fromQualString("aten::conv" + std::to_string(rank) + "d"), {old->input(0)});
    copyOrigin(conv, old)->insertBefore(old);
    conv->output()->copyMetadata(old->output());
    conv->addInput(attribute(old, 1, form, conv, [&] { return subPixelWeight(weight, form); }));
    conv->addInput(bias ? attribute(old, 2, form, conv, [&] { return subPixelBias(*bias, form); })
                        : old->input(2));
    for (const at::IValue& argument : std::initializer_list<at::IValue>{
             Ints(rank, 1), form.padding, form.dilation, form.groups}) {
      conv->addInput(insertConstantBefore(conv, argument));
    }
    replaceAndDestroy(old, conv->output());
    arrange(conv, form, weight.size(1));
  }

 private:
  // An attribute beside that of input `index`, made once for all equal uses.
  template <typename Make>
  Value* attribute(Node* old, size_t index, const SubPixel& form, Node* conv, const Make& make) {
    const auto path = attributePath(old->input(index));
    const std::string source = path.value_or(index == 1 ? "weight" : "bias");
    std::string key = source + " " + std::to_string(form.groups);
    for (const Ints& sizes : {form.stride, form.spacing}) {
      for (const int64_t size : sizes) key += " " + std::to_string(size);
    }
    std::string unnamed;  // a constant has no name by which to find it again
    std::string& name = path ? made_[key] : unnamed;
    if (name.empty()) {
      const auto [owner, leaf] = ownerOf(program_.module, source);
      name = source.substr(0, source.size() - leaf.size()) +
             freeAttributeName(owner, leaf + "_as_convolution");
      setTensorAttribute(program_.module, name, make());
    }
    return insertAttributeRead(graph_, name, program_.module, conv);
  }

  // After the activation that follows the convolution, so that this can still absorb it.
  void arrange(Node* conv, const SubPixel& form, int64_t group_channels) {
    Node* last = conv;
    if (hasOneUse(conv->output())) {
      Node* user = conv->output()->uses()[0].user;
      if (activationBounds(user) && user->owningBlock() == conv->owningBlock()) last = user;
    }
    Value* original = last->output();
    Builder builder(last, conv);
    Value* output = original;
    Node* first = nullptr;
    const auto append = [&](c10::Symbol kind, const std::vector<at::IValue>& arguments) {
      output = builder.insert(kind, output, arguments);
      if (first == nullptr) first = output->node();
    };
    if (form.phases() > 1) interleave(append, form, group_channels);
    const auto rank = static_cast<int64_t>(form.stride.size());
    for (int64_t i = 0; i < rank; ++i) {
      if (form.cut_left[i] == 0 && form.cut_right[i] == 0) continue;
      const int64_t end =
          form.cut_right[i] == 0 ? std::numeric_limits<int64_t>::max() : -form.cut_right[i];
      append(c10::aten::slice, {i - rank, form.cut_left[i], end, int64_t{1}});
    }
    if (first == nullptr) return;
    append(c10::aten::clone, {static_cast<int64_t>(at::MemoryFormat::Contiguous)});
    original->replaceAllUsesWith(output);
    first->replaceInput(0, original);
  }

  // Dimensions are counted from the end, since the input may come without a batch.
  template <typename Append>
  static void interleave(const Append& append, const SubPixel& form, int64_t group_channels) {
    const auto rank = static_cast<int64_t>(form.stride.size());
    const int64_t group = form.groups > 1 ? 1 : 0;
    Ints sizes(form.stride);
    if (group != 0) sizes.insert(sizes.begin(), form.groups);
    sizes.push_back(group_channels);
    append(c10::aten::unflatten, {-rank - 1, sizes});
    // (..., [groups], phases..., channels, sizes...) to (..., size, phase, size, phase, ...,
    // [groups], channels)
    const int64_t count = group + rank + 1 + rank;
    Ints from, to;
    const auto move = [&](int64_t source, int64_t target) {
      from.push_back(source - count);
      to.push_back(target - count);
    };
    for (int64_t i = 0; i < rank; ++i) {
      move(group + rank + 1 + i, 2 * i);
      move(group + i, 2 * i + 1);
    }
    if (group != 0) move(0, 2 * rank);
    move(group + rank, 2 * rank + group);
    append(c10::aten::movedim, {from, to});
    if (group != 0) append(c10::aten::flatten, {int64_t{-2}, int64_t{-1}});
    for (int64_t i = 0; i < rank; ++i) {
      const int64_t size = -1 - 2 * (rank - i);
      append(c10::aten::flatten, {size, size + 1});
    }
    append(c10::aten::movedim, {Ints{-1}, Ints{-rank - 1}});
  }

  Program& program_;
  jit::Graph& graph_;
  Made& made_;
};

}  // namespace

void rewriteConvTranspose(Program& program) {
  Made made;
  for (Method& method : program.methods) {
    Rewriter rewriter(program, *method.graph, made);
    for (Node* node : nodesWhere(*method.graph, isConvTranspose)) {
      if (isLeftFloat(node)) continue;
      if (whyNotConvolution(node, program.module).empty()) rewriter.rewrite(node);
    }
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
