// configure: each op gets the qconfig that the caller decided on, as a mark.
//
// Before:
//   %y = aten::conv2d(%x, ...); %z = aten::relu(%y)
// After, where the second is left float:
//   %y = aten::conv2d[jitquant_qconfig=0](%x, ...); %z = aten::relu[jitquant_qconfig=-1](%y)
//
// Needs:  the normal form, so that equal ops have one spelling, and note_origins.
// Leaves: everything else. The passes that come after hand the mark on to what they make of an op,
//         and leave alone what has a negative one.

#include <stdexcept>
#include <unordered_map>

#include "dynamic.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"

namespace jitquant {

std::vector<ConfiguredOp> configuredOps(const Program& program) {
  std::vector<ConfiguredOp> ops;
  std::unordered_map<const jit::Scope*, int64_t> origins;  // looked up only
  for (const Method& method : program.methods) {
    for (jit::Node* node : listedNodes(method)) {
      const auto next = static_cast<int64_t>(origins.size());
      const int64_t origin = origins.emplace(node->scope().get(), next).first->second;
      ops.push_back({method.name, node->kind().toQualString(), writtenKind(node), modulePath(node),
                     sourceLine(node), origin});
    }
  }
  return ops;
}

void configure(Program& program, const std::vector<int64_t>& decisions) {
  size_t next = 0;
  for (const Method& method : program.methods) {
    for (jit::Node* node : listedNodes(method)) {
      setMark(node, kQConfigMark, decisionOn(node, decisions.at(next++), program));
    }
  }
  if (next != decisions.size()) throw std::logic_error("there are more decisions than ops");
}

}  // namespace jitquant
