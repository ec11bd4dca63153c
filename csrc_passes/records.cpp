#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>

#include "error.h"
#include "fused_float.h"
#include "ir_util.h"
#include "plan.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool holdsTensor(const c10::TypePtr& type) {
  if (type->isSubtypeOf(*c10::TensorType::get())) return true;
  for (const auto& inner : type->containedTypes()) {
    if (holdsTensor(inner)) return true;
  }
  return false;
}

// Whether it works on lists or dicts of anything, such as aten::append.
bool isOfTheLanguage(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr) return false;
  return std::any_of(
      schema->arguments().begin(), schema->arguments().end(),
      [](const c10::Argument& argument) { return argument.type()->hasFreeVariables(); });
}

// Tells which nodes are ops that could be int8 or float. Each value is looked at once, however many
// ops it leads to.
class Lister {
 public:
  // Ops that compute tensors. What only reads shapes, or arranges values in the language, is not
  // an op that could be int8 or float.
  bool isListed(const Node* node) {
    if (node->kind().is_prim() || isOfTheLanguage(node)) return false;
    const OpRow* row = findRow(node);
    if (row != nullptr && row->role == Role::kMetadata) return false;
    for (const Value* output : node->outputs()) {
      if (holdsTensor(output->type()) && !isTracedNumber(output)) return true;
    }
    return false;
  }

 private:
  // Whether tracing keeps a number, such as a size, in this tensor.
  bool isTracedNumber(const Value* value) {
    const auto found = known_.find(value);
    if (found != known_.end()) return found->second;
    const bool is_number = readsNumbersOnly(value->node());
    known_.emplace(value, is_number);
    return is_number;
  }

  bool readsNumbersOnly(const Node* node) {
    if (node->kind() == c10::prim::NumToTensor) return true;
    if (!node->kind().is_aten() || node->inputs().empty()) return false;
    bool from_number = false;
    for (const Value* input : node->inputs()) {
      if (!holdsTensor(input->type()) || constantNumber(input)) continue;
      if (!isTracedNumber(input)) return false;
      from_number = true;
    }
    return from_number;
  }

  std::unordered_map<const Value*, bool> known_;  // looked up only
};

}  // namespace

std::vector<Node*> listedNodes(const Method& method) {
  std::vector<Node*> nodes;
  Lister lister;
  for (Node* node : allNodes(*method.graph)) {
    if (lister.isListed(node)) nodes.push_back(node);
  }
  return nodes;
}

void listOps(Program& program) {
  for (const Method& method : program.methods) {
    for (Node* node : listedNodes(method)) {
      setMark(node, kOpMark, static_cast<int64_t>(program.records.size()));
      OpRecord record;
      record.method = method.name;
      record.kind = node->kind().toQualString();
      record.path = modulePath(node);
      record.source = sourceLine(node);
      const auto qconfig = mark(node, kQConfigMark);
      if (!qconfig) throw std::logic_error(describe(node) + " has no configuration");
      record.qconfig = *qconfig == kFusedFloat ? kLeftFloat : *qconfig;
      program.records.push_back(std::move(record));
    }
  }
}

void attachRecords(Program& program) {
  const auto end = program.records.end();
  for (const Method& method : program.methods) {
    const auto of_method = [&](const OpRecord& record) { return record.method == method.name; };
    auto next = std::find_if(program.records.begin(), end, of_method);
    for (Node* node : listedNodes(method)) {
      const bool at_end = next == end || !of_method(*next);
      if (at_end || next->kind != node->kind().toQualString()) {
        throw UserError("the prepared model's graph was changed after prepare_jit: it now has " +
                        describe(node) + " where prepare_jit saw " +
                        (at_end ? "the end of " + method.name : next->kind) +
                        ". Run prepare_jit again on the float model.");
      }
      setMark(node, kOpMark, next - program.records.begin());
      setModulePath(node, next->path);
      ++next;
    }
  }
}

void leaveFloat(Program& program, const Node* op, const std::string& reason) {
  OpRecord& record = program.records[*mark(op, kOpMark)];
  record.int8 = false;
  record.reason = reason;
  record.part_of = -1;
}

void noteRemovedOps(Program& program) {
  std::vector<bool> present(program.records.size(), false);
  for (const Method& method : program.methods) {
    for (const Node* node : allNodes(*method.graph)) {
      if (const auto index = mark(node, kOpMark)) present[*index] = true;
    }
  }
  for (size_t i = 0; i < present.size(); ++i) {
    if (present[i]) continue;
    program.records[i].int8 = false;
    program.records[i].reason =
        "it was removed: it can never run, or its result is a constant or never read";
  }
}

}  // namespace jitquant
