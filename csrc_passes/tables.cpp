#include "tables.h"

#include <ATen/ATen.h>

#include "ir_util.h"

namespace jitquant {

using jit::Node;

namespace {

std::string whyNotBag(const Node* node) {
  const auto inputs = node->inputs();
  const auto mode = constantNumber(inputs[kBagMode]);
  if (!mode) return "its mode is computed at run time";
  if (*mode != kSum && *mode != kMean) return "torch's kernels of packed tables know no max";
  if (inputs.size() > kBagPadding && !isNone(inputs[kBagPadding])) {
    return "its padding_idx leaves rows out, and torch's kernels of packed tables do not";
  }
  if (!isNone(inputs[kBagWeights]) && *mode != kSum) return "only sums have weights";
  if (*mode == kMean && !constantNumber(inputs[kBagLastOffset])) {
    return "its form of offsets is chosen at run time";
  }
  for (const jit::Value* output : node->outputs().slice(1)) {
    if (!output->uses().empty()) return "more than its sums or means is read";
  }
  return "";
}

}  // namespace

bool isEmbedding(const Node* node) {
  return node->kind() == c10::aten::embedding || node->kind() == c10::aten::embedding_bag;
}

bool isForTables(const ObserverPair& qconfig) {
  return qconfig.activations == Activations::kByteRows ||
         qconfig.activations == Activations::kFourBitRows;
}

const TableRow* tableRow(const Node* node, int64_t qconfig, const Program& program) {
  if (qconfig < 0 || !isEmbedding(node)) return nullptr;
  return program.target->findTable(program.qconfigs.at(qconfig).activations);
}

std::string whyNotTable(const Node* node, int64_t qconfig, const Program& program) {
  const TableRow* row = tableRow(node, qconfig, program);
  if (row == nullptr) return kTableIsFloat;
  const auto table = constantTensor(node->input(0), program.module);
  if (!table) return "its table is computed at run time";
  if (table->scalar_type() != at::kFloat) {
    return std::string("its table is ") + c10::toString(table->scalar_type()) + ", not float32";
  }
  if (!table->isfinite().all().item<bool>()) return "its table holds NaN or infinite values";
  if (node->kind() == c10::aten::embedding_bag) {
    std::string reason = whyNotBag(node);
    if (!reason.empty()) return reason;
  }
  return row->problem(*table);
}

}  // namespace jitquant
