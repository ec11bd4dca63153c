// fold_prepack: quantizing and packing of weights happens now, not when the model runs.
//
// Before:
//   %wq = aten::quantize_per_channel(%w, ...); %packed = quantized::conv2d_prepack(%wq, %b, ...)
// After:
//   %packed = GetAttr[name="layer1_0_conv1_packed_params"](%self)
// The cell of an LSTM or GRU, made of two packed weights, is one attribute.
//
// Needs:  restore_layout. Equal packings are kept once, in all methods.
// Leaves: packing of what is not constant yet, to freeze. It runs before freeze, whose time grows
//         with the square of the number of constant tensors.

#include "constant_folder.h"
#include "passes/passes.h"

namespace jitquant {

void foldPrepack(Program& program) {
  ConstantFolder folder(program);
  for (Method& method : program.methods) folder.foldPrepacks(method);
}

}  // namespace jitquant
