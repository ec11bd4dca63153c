#pragma once
// Ops that stay float although an int8 form might be expected, and why. Read by plan and by the
// generated documentation. Ops with neither a row here nor in the op table have no int8 form.

#include <string>
#include <vector>

#include "op_table.h"

namespace jitquant {

struct FloatOp {
  std::string name;             // "aten::softmax"
  std::string reason;           // in words, "its int8 kernel ..."
  bool of_any_qconfig = false;  // the reason holds with a dynamic one too
};

const std::vector<FloatOp>& floatOps();

// The reason of ops with a static qconfig that only a dynamic one makes int8.
inline constexpr const char* kOnlyDynamic =
    "torch's int8 form computes its scales at run time: a dynamic qconfig makes it int8";

inline constexpr const char* kOnlyLayers =
    "its qconfig is dynamic, which is for layers with weights";

// Why an op without a row in the op table stays float, with a dynamic qconfig or another.
std::string whyFloatOp(const jit::Node* node, const jit::Module& module, bool is_dynamic);

}  // namespace jitquant
