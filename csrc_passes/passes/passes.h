#pragma once
// Every pass, in the order in which the pipeline runs them. Each file passes/<name>.cpp opens with
// what the pass does.

#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// Prepare.
Program flatten(const jit::Module& original, const std::vector<std::string>& methods);
void noteOrigins(Program& program);
void undoMkldnn(Program& program);
void foldAttributes(Program& program);
void resolveAsserts(Program& program);
void resolveIdentities(Program& program);
void padNested(Program& program);
void unfoldAttention(Program& program);
void nameWeights(Program& program);
void ownState(Program& program);
void functionalize(Program& program);
void foldWeights(Program& program);
void canonicalize(Program& program);
void canonicalizeEinsum(Program& program);
void canonicalizeLinear(Program& program);
void splitBias(Program& program);
void canonicalizeArithmetic(Program& program);
void splitLists(Program& program);
void canonicalizeStack(Program& program);
void canonicalizeShuffle(Program& program);
void simplify(Program& program);
std::vector<ConfiguredOp> configuredOps(const Program& program);
void configure(Program& program, const std::vector<int64_t>& decisions);
// The names of the recorders at the tensors that each of the listed ops reads.
std::vector<std::vector<std::string>> watchShapes(Program& program,
                                                  const jit::Module& shape_recorder);
void unfoldCells(Program& program);
void foldConvBn(Program& program);
void rewriteConvTranspose(Program& program);
void rewritePixelShuffle(Program& program);
void foldPad(Program& program);
void plan(Program& program);
void keepState(Program& program);
void insertObservers(Program& program, const jit::Module& shape_recorder);
void recordArguments(Program& program);

// Convert.
void restoreState(Program& program);
void dropArgumentRecorder(Program& program);
void collectObservers(Program& program);
void padGroups(Program& program);
void insertQdq(Program& program);
void insertDynamicQdq(Program& program);
void quantizeTables(Program& program);
void quantizeJoins(Program& program);
void propagateDequantize(Program& program);
void lower(Program& program);
void verify(Program& program);
void lowerDynamic(Program& program);
void verifyDynamic(Program& program);
void lowerTables(Program& program);
void verifyTables(Program& program);
void noteSharedWeights(Program& program);
void fuse(Program& program);
void chainCats(Program& program);
void fuseSum(Program& program);
void fuseActivation(Program& program);
void restoreLayout(Program& program);
void expandOperands(Program& program);
void reuseMemory(Program& program);
void useReferences(Program& program);
void noteValues(Program& program);
void listValues(Program& program);  // last of all, into the records
void freeze(Program& program, const std::vector<std::string>& preserved);
void foldPrepack(Program& program);
void stripOrigins(Program& program);

}  // namespace jitquant
