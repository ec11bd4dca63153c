// pad_groups: a grouped convolution gets groups of zeros, where the target says that it is fast
// with so many only.
//
// Before, with 116 channels:
//   %x = aten::conv2d(%i, %w, ...); %y = aten::conv2d(%x, %v, ..., 116)
//   %o = aten::conv2d(%y, %u, ...)
// After, with 120:
//   %x = aten::conv2d(%i, %w0, ...); %y = aten::conv2d(%x, %v0, ..., 120)
//   %o = aten::conv2d(%y, %u0, ...)
//
// Needs:  plan, which asks the same groupNeighbours.
// Leaves: convolutions whose neighbours cannot pad them, which plan keeps float, and all debug
//         models. %w0 gives further channels and %u0 multiplies them with zero, so that nothing is
//         copied at run time.

#include <ATen/ATen.h>

#include "channels.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Padder {
 public:
  Padder(Program& program, Method& method) : program_(program), method_(method) {}

  void run() {
    for (Node* node : allNodes(*method_.graph)) {
      if (method_.plan->int8.count(node) == 0) continue;
      const Int8Row& row = *program_.target->find(*findRow(node));
      if (row.missing_groups == nullptr) continue;
      if (const int64_t missing = row.missing_groups(node, program_.module)) pad(node, missing);
    }
  }

 private:
  void pad(Node* conv, int64_t missing) {
    const GroupNeighbours around = *groupNeighbours(conv, program_.module);
    const at::Tensor weight = *constantTensor(conv->input(1), program_.module);
    const auto groups = static_cast<int64_t>(*constantNumber(conv->input(6)));
    const int64_t inputs = missing * weight.size(1);
    const int64_t outputs = missing * weight.size(0) / groups;
    grow(around.giver, 1, 0, inputs);
    grow(around.giver, 2, 0, inputs);
    grow(conv, 1, 0, outputs);
    grow(conv, 2, 0, outputs);
    conv->replaceInput(6, insertConstantBefore(conv, groups + missing));
    for (Node* taker : around.takers) grow(taker, 1, 1, outputs);
    const size_t spatial = static_cast<size_t>(weight.dim()) - 2;
    for (const Value* value : around.inputs) noteChannels(value, spatial, inputs);
    for (const Value* value : around.outputs) noteChannels(value, spatial, outputs);
  }

  // Zeros at the end of a dimension of a weight or bias.
  void grow(Node* conv, size_t index, int64_t dim, int64_t count) {
    if (isNone(conv->input(index))) return;
    const at::Tensor tensor = constantTensor(conv->input(index), program_.module)->detach();
    std::vector<int64_t> zeros = tensor.sizes().vec();
    zeros[dim] = count;
    const at::Tensor grown = at::cat({tensor, at::zeros(zeros, tensor.options())}, dim);
    conv->replaceInput(index, insertConstantBefore(conv, grown));
  }

  // verify makes its inputs by these shapes.
  void noteChannels(const Value* value, size_t spatial, int64_t count) {
    const auto found = program_.observations.find(value);
    if (found == program_.observations.end()) return;
    for (auto& shape : found->second.shapes) shape.at(shape.size() - spatial - 1) += count;
  }

  Program& program_;
  Method& method_;
};

}  // namespace

void padGroups(Program& program) {
  for (Method& method : program.methods) Padder(program, method).run();
}

}  // namespace jitquant
