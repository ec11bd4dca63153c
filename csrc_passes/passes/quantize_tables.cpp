// quantize_tables: the table of an embedding is packed and unpacked.
//
// Before:
//   %y = aten::embedding(%w, %i, ...)
// After:
//   %rows = quantized::embedding_bag_byte_prepack(%w)
//   %u = quantized::embedding_bag_byte_unpack(%rows)
//   %y = aten::embedding(%u, %i, ...)
//
// Needs:  plan.
// Leaves: embeddings that stay float.

#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "tables.h"

namespace jitquant {

using jit::Node;
using jit::Value;

void quantizeTables(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (method.plan->tables.count(node) == 0) continue;
      const TableRow& row = *tableRow(node, program.records[*mark(node, kOpMark)].qconfig, program);
      std::vector<Value*> arguments{node->input(0)};
      for (const at::IValue& constant : row.pack_constants) {
        arguments.push_back(insertConstantBefore(node, constant));
      }
      Value* rows = insertOp(node, c10::Symbol::fromQualString(row.pack), arguments);
      node->replaceInput(0, insertOp(node, c10::Symbol::fromQualString(row.unpack), {rows}));
    }
  }
}

}  // namespace jitquant
