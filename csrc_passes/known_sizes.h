#pragma once
// Sizes that are read at run time, and can have one value only.

#include <utility>
#include <vector>

#include "program.h"

namespace jitquant {

using KnownSize = std::pair<const jit::Value*, int64_t>;

// A linear layer takes inputs whose last dimension is that of its weight, and raises for others.
// So what reads the size of that dimension is known wherever the layer runs too, such as in
// torch.nn's cross-attention:
//   %e = aten::size(%query, -1); %w, %rest = split(self.in_proj_weight, [%e, 2 * %e])
//   %q = aten::linear(%query, %w, ...)         the weight has 32 columns, so %e is 32
class KnownSizes {
 public:
  KnownSizes(jit::Graph& graph, const jit::Module& module);

  // Those known in every run of `block` that does not raise.
  std::vector<KnownSize> in(const jit::Block* block) const;

 private:
  std::unordered_map<const jit::Block*, std::vector<KnownSize>> known_;  // looked up only
};

}  // namespace jitquant
