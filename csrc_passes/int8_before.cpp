#include "int8_before.h"

#include <algorithm>
#include <string>

#include "ir_util.h"
#include "op_table.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// Ops with packed weights, of torch's quantized library and of its recurrent layers.
bool isOfQuantizedLibrary(const std::string& kind) {
  return (kind.rfind("quantized::", 0) == 0 || kind.rfind("aten::quantized_", 0) == 0) &&
         !contains(kind, "fp16");
}

// Dynamic ops and embeddings read or give float.
bool givesFloat(const std::string& kind) {
  return contains(kind, "dynamic") || contains(kind, "embedding") || contains(kind, "fp32") ||
         kind.rfind("aten::", 0) == 0;
}

}  // namespace

Int8Before::Int8Before(jit::Graph& graph) {
  for (const Node* node : allNodes(graph)) follow(node);
}

void Int8Before::follow(const Node* node) {
  const std::string kind = node->kind().toQualString();
  const bool reads_int8 = std::any_of(node->inputs().begin(), node->inputs().end(),
                                      [&](const Value* input) { return isInt8(input); });
  const bool is_list =
      node->kind() == c10::prim::ListConstruct || node->kind() == c10::prim::ListUnpack;
  const bool is_quantize = kind.rfind("aten::quantize_per_", 0) == 0;
  const bool is_packed = isOfQuantizedLibrary(kind);
  const OpRow* row = findRow(node);
  const bool works_on_int8 = reads_int8 && row != nullptr && row->role != Role::kMetadata;
  if (is_packed || works_on_int8) ops_.insert(node);
  if (!is_quantize && !works_on_int8 && !(reads_int8 && is_list) &&
      !(is_packed && !givesFloat(kind))) {
    return;
  }
  for (const Value* output : node->outputs()) values_.insert(output);
}

}  // namespace jitquant
