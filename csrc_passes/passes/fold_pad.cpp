// fold_pad: zero padding before a convolution becomes the convolution's own padding.
//
// Before:
//   %p = aten::pad(%x, [0, 1, 0, 1], "constant", 0); %y = aten::conv2d(%p, %w, %b, 2, [0, 0], ...)
// After, with %v the weight %w and one more row and column of zeros at its front:
//   %y = aten::conv2d(%x, %v, %b, 2, [1, 1], ...)
//
// Needs:  canonicalize and fold_conv_bn.
// Leaves: padding of another value or of other dimensions, or with other readers; what the
//         configuration leaves float.
//
// A convolution pads both sides alike. With left < right, `front` zeros before the kernel and
// left + front of padding move no window. front = right - left also keeps the output's size. For a
// depthwise kernel of odd size k that would be an even kernel, which stock int8 kernels run 100
// times slower than an odd one: there front = k - 1 - 2 left, and the rows that this can add at
// the end are cut off again (none where the size is even, as it is in practice).

#include <ATen/ATen.h>

#include <map>

#include "dead_code.h"
#include "ir_util.h"
#include "next_layer.h"
#include "op_table.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

using Ints = std::vector<int64_t>;

// Left and right padding by spatial dimension, first dimension first.
struct Padding {
  Ints left, right;
};

Ints spread(const Ints& values, size_t rank) {
  return values.size() == rank ? values : Ints(rank, values.at(0));
}

// The padding of the pad op and of the convolution together; nullopt where it cannot be folded.
std::optional<Padding> totalPadding(const Node* pad, const Node* conv, size_t rank) {
  const auto pads = constantInts(pad->input(1));
  const auto own = constantInts(conv->input(4));
  if (!pads || !own || own->empty() || pads->size() % 2 != 0 || pads->size() > 2 * rank) {
    return std::nullopt;
  }
  Padding total{spread(*own, rank), spread(*own, rank)};
  for (size_t i = 0; i < pads->size() / 2; ++i) {  // last dimension first
    if ((*pads)[2 * i] < 0 || (*pads)[2 * i + 1] < 0) return std::nullopt;
    total.left[rank - 1 - i] += (*pads)[2 * i];
    total.right[rank - 1 - i] += (*pads)[2 * i + 1];
  }
  return total;
}

class Folder {
 public:
  Folder(Program& program, Method& method, std::map<std::string, std::string>& extended)
      : program_(program), method_(method), extended_(extended) {}

  void fold(Node* pad) {
    if (!padsWithZero(pad) || !hasOneUse(pad->output())) return;
    Node* conv = pad->output()->uses()[0].user;
    if (!isConv(conv) || conv->input(0) != pad->output()) return;
    if (conv->owningBlock() != pad->owningBlock()) return;
    if (isLeftFloat(conv) || isLeftFloat(pad)) return;
    const auto weight = constantTensor(conv->input(1), program_.module);
    const auto stride = constantInts(conv->input(3));
    const auto dilation = constantInts(conv->input(5));
    if (!weight || !stride || !dilation || weight->dim() < 3) return;
    const size_t rank = static_cast<size_t>(weight->dim()) - 2;
    const auto total = totalPadding(pad, conv, rank);
    if (!total) return;
    if (total->left == total->right) {
      setPadding(conv, pad, total->left);
      return;
    }
    if (spread(*dilation, rank) != Ints(rank, 1) || !attributePath(conv->input(1))) return;
    extend(conv, pad, *weight, *total, spread(*stride, rank));
  }

 private:
  static void setPadding(Node* conv, Node* pad, const Ints& padding) {
    conv->replaceInput(4, insertConstantBefore(conv, padding));
    conv->replaceInput(0, pad->input(0));
  }

  void extend(Node* conv, Node* pad, const at::Tensor& weight, const Padding& total,
              const Ints& stride) {
    const size_t rank = total.left.size();
    Ints exact, front(rank), padding(rank);
    for (size_t i = 0; i < rank; ++i) {
      exact.push_back(total.right[i] - total.left[i]);
      front[i] = exact[i];
      const int64_t kernel = weight.size(static_cast<int64_t>(i) + 2);
      const int64_t odd = kernel - 1 - 2 * total.left[i];
      const bool depthwise = weight.size(1) == 1 && constantNumber(conv->input(6)) != 1.0;
      if (depthwise && kernel % 2 == 1 && odd >= exact[i]) front[i] = odd;
      if (front[i] < 0) return;
      padding[i] = total.left[i] + front[i];
    }
    Value* x = pad->input(0);
    conv->replaceInput(1, extendedWeight(conv, weight, front));
    setPadding(conv, pad, padding);
    if (front != exact) cutOutput(conv, x, weight, total, stride);
  }

  // The weight with zeros at the front of its spatial dimensions, kept once per weight and size.
  Value* extendedWeight(Node* conv, const at::Tensor& weight, const Ints& front) {
    const std::string path = *attributePath(conv->input(1));
    Ints pads;
    std::string key = path;
    for (auto size = front.rbegin(); size != front.rend(); ++size) {
      pads.insert(pads.end(), {*size, 0});
      key += " " + std::to_string(*size);
    }
    std::string& extended = extended_[key];
    if (extended.empty()) {
      const auto [owner, name] = ownerOf(program_.module, path);
      const std::string prefix = path.substr(0, path.size() - name.size());
      extended = prefix + freeAttributeName(owner, name + "_padded");
      setTensorAttribute(program_.module, extended,
                         at::constant_pad_nd(weight.detach(), pads).contiguous());
    }
    return insertAttributeRead(*method_.graph, extended, program_.module, conv);
  }

  // Keeps the first (size + left + right - kernel) / stride + 1 rows of each dimension, after the
  // activation that follows the convolution, so that this can still absorb it.
  void cutOutput(Node* conv, Value* x, const at::Tensor& weight, const Padding& total,
                 const Ints& stride) {
    Node* last = conv;
    if (hasOneUse(conv->output())) {
      Node* user = conv->output()->uses()[0].user;
      if (activationBounds(user) && user->owningBlock() == conv->owningBlock()) last = user;
    }
    jit::Graph& graph = *method_.graph;
    Value* original = last->output();
    Value* output = original;
    const jit::WithInsertPoint guard(last->next());
    const auto insert = [&](c10::Symbol kind, at::ArrayRef<jit::NamedValue> inputs) {
      Value* value = graph.insert(kind, inputs);
      copyOrigin(value->node(), conv);
      return value;
    };
    for (size_t i = 0; i < stride.size(); ++i) {
      // From the end, since the input may come without a batch.
      const auto dim = static_cast<int64_t>(i) - static_cast<int64_t>(stride.size());
      const int64_t kernel = weight.size(dim);
      Value* size = insert(c10::aten::size, {x, dim});
      Value* span = insert(c10::aten::add, {size, total.left[i] + total.right[i] - kernel});
      Value* steps = insert(c10::aten::floordiv, {span, stride[i]});
      Value* count = insert(c10::aten::add, {steps, int64_t{1}});
      output = insert(c10::aten::slice, {output, dim, int64_t{0}, count, int64_t{1}});
    }
    original->replaceAllUsesAfterNodeWith(output->node(), output);
  }

  Program& program_;
  Method& method_;
  std::map<std::string, std::string>& extended_;  // looked up only
};

}  // namespace

void foldPad(Program& program) {
  std::map<std::string, std::string> extended;
  for (Method& method : program.methods) {
    Folder folder(program, method, extended);
    for (Node* node : allNodes(*method.graph)) folder.fold(node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
