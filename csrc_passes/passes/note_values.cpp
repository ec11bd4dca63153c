// note_values: the node that computes each listed op's value is marked, so that the finished file
// can say which it is.
//
// Before:
//   %q = quantized::conv2d_relu[jitquant_op=4](%x, %packed, s, z)
// After:
//   %q = quantized::conv2d_relu[jitquant_op=4, jitquant_value=4](%x, %packed, s, z)
//
// In a debug model it is the node that rounds:
//   %r = aten::relu[jitquant_op=5](%c); %q = aten::quantize_per_tensor[jitquant_value=4](%r, ...)
//
// Needs:  restore_layout and use_references, the last that make such nodes.
// Leaves: ops that another one absorbs, whose value is that one's, those that give no tensor, and
//         references that end in a branch.
//
// listValues writes down, of each mark, the node's kind and which of its kind it is. Names of
// values do not outlive saving; the order of nodes does.

#include <map>

#include "ir_util.h"
#include "op_table.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;

namespace {

// Of an int8 op that is emulated in float: the quantize of its result.
Node* roundedBy(Node* node, const OpRecord& record, const Program& program) {
  const bool is_static = record.qconfig >= 0 &&
                         program.qconfigs.at(record.qconfig).activations == Activations::kStatic;
  const bool is_emulated = record.int8 && is_static && !mark(node, kInt8Mark);
  if (!is_emulated || findRow(node) == nullptr || !hasOneUse(node->output(0))) return node;
  Node* user = node->output(0)->uses()[0].user;
  return user->kind() == c10::aten::quantize_per_tensor ? user : node;
}

void note(const Method& method, const Program& program) {
  std::vector<Node*> last(program.records.size(), nullptr);
  for (Node* node : allNodes(*method.graph)) {
    const auto index = mark(node, kOpMark);
    if (!index || node->outputs().empty() || !isTensor(node->output(0))) continue;
    last.at(*index) = node->kind().is_prim() ? nullptr : node;  // loading may drop branches
  }
  for (size_t i = 0; i < last.size(); ++i) {
    const int64_t part_of = program.records[i].part_of;
    if (part_of >= 0 && last[i] != nullptr) std::swap(last[part_of], last[i]);
    if (part_of >= 0) last[i] = nullptr;
  }
  for (size_t i = 0; i < last.size(); ++i) {
    if (last[i] == nullptr) continue;
    Node* node = roundedBy(last[i], program.records[i], program);
    setMark(node, kValueMark, static_cast<int64_t>(i));
  }
}

}  // namespace

void noteValues(Program& program) {
  for (const Method& method : program.methods) note(method, program);
}

void listValues(Program& program) {
  for (const Method& method : program.methods) {
    std::map<std::string, int64_t> counts;
    for (const Node* node : allNodes(*method.graph)) {
      const std::string kind = node->kind().toQualString();
      const int64_t place = counts[kind]++;
      const auto index = mark(node, kValueMark);
      if (!index) continue;
      OpRecord& record = program.records[*index];
      record.value_kind = kind;
      record.value_nodes.push_back(place);
    }
  }
}

}  // namespace jitquant
