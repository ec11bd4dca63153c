#pragma once
// Every pass, in the order in which the pipeline runs them. Each file passes/<name>.cpp opens with
// what the pass does.

#include <functional>
#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// Prepare.
Program flatten(const jit::Module& original, const std::vector<std::string>& methods);
void undoMkldnn(Program& program);
void foldAttributes(Program& program);
void unfoldAttention(Program& program);
void ownState(Program& program);
void functionalize(Program& program);
void foldWeights(Program& program);
void canonicalize(Program& program);
void canonicalizeEinsum(Program& program);
void canonicalizeLinear(Program& program);
void canonicalizeArithmetic(Program& program);
void canonicalizeStack(Program& program);
void simplify(Program& program);
void foldConvBn(Program& program);
// `wanted` tells whether an op may become int8.
void rewriteConvTranspose(Program& program, const std::function<bool(const jit::Node*)>& wanted);
void foldPad(Program& program);
void plan(Program& program);
void keepState(Program& program);
void insertObservers(Program& program, const jit::Module& shape_recorder);

// Convert.
void restoreState(Program& program);
void collectObservers(Program& program);
void insertQdq(Program& program);
void quantizeJoins(Program& program);
void propagateDequantize(Program& program);
void lower(Program& program);
void verify(Program& program);
void fuse(Program& program);
void restoreLayout(Program& program);
void freeze(Program& program, const std::vector<std::string>& preserved);
void foldPrepack(Program& program);
void stripOrigins(Program& program);

}  // namespace jitquant
