// fold_weights: weights that are computed from constants are computed once.
//
// Before:
//   %wq, %wk, %wv = aten::chunk(%in_proj_weight, %three, %zero); %q = aten::linear(%x, %wq, %bq)
//   %w = aten::_weight_norm(%v, %g, %zero); %c = aten::conv1d(%y, %w, %b, ...)
//   %k = aten::clone(%bias); %m = aten::slice(%k, ...); %z = aten::zero_(%m)
//   %l = aten::linear(%y, %u, %k)
//   %e = aten::size(%y, -1); %h = aten::slice(%in_proj_weight, 0, 0, %e); %m = aten::linear(%y, %h)
// After:
//   %q = aten::linear(%x, self.in_proj_weight_folded, %bq)
//   %c = aten::conv1d(%y, self.v_folded, %b, ...)
//   %l = aten::linear(%y, %u, self.bias_folded)
//   %m = aten::linear(%y, self.in_proj_weight_folded)       since %e can be one number only
//
// Needs:  functionalize and own_state, so that attributes that change are marked.
// Leaves: what a random op, an input or an attribute that changes has part in. Transposed matrices,
//         which canonicalize_linear reads as they are.

#include <optional>
#include <unordered_map>

#include "alias.h"
#include "dead_code.h"
#include "evaluate.h"
#include "ir_util.h"
#include "known_sizes.h"
#include "nodes.h"
#include "op_table.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// The inputs that hold weights, by op.
const std::unordered_map<c10::Symbol, std::vector<size_t>>& weightInputs() {
  static const auto* const inputs = new std::unordered_map<c10::Symbol, std::vector<size_t>>{
      {c10::aten::linear, {1, 2}},           {c10::aten::_convolution, {1, 2}},
      {c10::aten::conv1d, {1, 2}},           {c10::aten::conv2d, {1, 2}},
      {c10::aten::conv3d, {1, 2}},           {c10::aten::conv_transpose1d, {1, 2}},
      {c10::aten::conv_transpose2d, {1, 2}}, {c10::aten::conv_transpose3d, {1, 2}},
      {c10::aten::batch_norm, {1, 2, 3, 4}}};
  return *inputs;
}

bool hasWeights(const Node* node) { return weightInputs().count(node->kind()) != 0; }

// Whether an op of torch gives the same for the same inputs, and changes nothing.
bool isFunction(const Node* node) {
  const auto kind = node->kind();
  if (kind == c10::prim::ListConstruct || kind == c10::prim::ListUnpack) return true;
  return (kind.is_aten() || kind.is_prim()) && node->blocks().empty() && isPure(node);
}

// Ops that write their first input, and leave its shape as it is.
bool writesValuesOnly(const Node* node) {
  static constexpr c10::Symbol kinds[] = {c10::aten::zero_, c10::aten::fill_, c10::aten::copy_,
                                          c10::aten::add_,  c10::aten::sub_,  c10::aten::mul_,
                                          c10::aten::div_};
  return std::find(std::begin(kinds), std::end(kinds), node->kind()) != std::end(kinds);
}

using Nodes = std::vector<const Node*>;

// What is the same in every run.
class Constancy {
 public:
  Constancy(const Method& method, const jit::Module& module)
      : module_(module), aliases_(*method.graph, module), known_sizes_(*method.graph, module) {}

  // From here on, questions are about values as this block's nodes read them.
  void enter(const jit::Block* block) {
    std::vector<KnownSize> sizes = known_sizes_.in(block);
    if (sizes == sizes_) return;
    sizes_ = std::move(sizes);
    known_.clear();
    for (const auto& [value, size] : sizes_) known_[value] = true;
  }

  // Sizes that are read at run time, but known in the block.
  const std::vector<KnownSize>& sizes() const { return sizes_; }

  bool isConstant(const Value* value) {
    const auto known = known_.find(value);
    if (known != known_.end()) return known->second;
    return known_[value] = compute(value);
  }

  // The writes that make what `reader` reads of `value`: none where the value is constant from the
  // start; nullopt where it is not the same in every run.
  std::optional<Nodes> writesBefore(const Node* reader, const Value* value) {
    if (isConstant(value)) return Nodes();
    const Nodes writers = aliases_.writersOf(value);
    if (!isOfConstants(value->node()) || !makesFreshTensor(value->node())) return std::nullopt;
    for (const Node* writer : writers) {
      const bool is_fixed = writesValuesOnly(writer) && writer->isBefore(reader) &&
                            writer->owningBlock() == value->node()->owningBlock() &&
                            isConstantPart(writer->input(0), value) && readsConstants(writer);
      if (!is_fixed) return std::nullopt;
    }
    return writers;
  }

 private:
  bool compute(const Value* value) {
    if (aliases_.isWritten(value)) return false;
    if (constantOrAttribute(value, module_)) return true;
    const OpRow* row = findRow(value->node());
    if (row != nullptr && row->role == Role::kMetadata) {
      const Value* tensor = value->node()->input(row->data[0]);
      if (hasConstantShape(tensor)) return readsConstants(value->node());
    }
    return isOfConstants(value->node());
  }

  bool isOfConstants(const Node* node) {
    return isFunction(node) && std::all_of(node->inputs().begin(), node->inputs().end(),
                                           [&](const Value* input) { return isConstant(input); });
  }

  // All inputs but the first.
  bool readsConstants(const Node* node) {
    const auto inputs = node->inputs().slice(1);
    return std::all_of(inputs.begin(), inputs.end(),
                       [&](const Value* input) { return isConstant(input); });
  }

  bool hasConstantShape(const Value* value) {
    const Nodes writers = aliases_.writersOf(value);
    return makesFreshTensor(value->node()) && isOfConstants(value->node()) &&
           std::all_of(writers.begin(), writers.end(), writesValuesOnly);
  }

  // Whether `part` is `whole`, or a view of it whose place is constant.
  bool isConstantPart(const Value* part, const Value* whole) {
    if (part == whole) return true;
    const Node* node = part->node();
    const bool hands_on = writesValuesOnly(node) || isFunction(node);
    return hands_on && !node->inputs().empty() && readsConstants(node) &&
           isConstantPart(node->input(0), whole);
  }

  const jit::Module& module_;
  Aliases aliases_;
  KnownSizes known_sizes_;
  std::vector<KnownSize> sizes_;
  std::unordered_map<const Value*, bool> known_;  // looked up only
};

// "layer.in_proj_weight" for something computed from it; "" if from no attribute.
std::string firstAttribute(const Value* value) {
  if (const auto path = attributePath(value)) return *path;
  for (const Value* input : value->node()->inputs()) {
    if (!isTensor(input) && input->type()->kind() != c10::TypeKind::ListType) continue;
    std::string path = firstAttribute(input);
    if (!path.empty()) return path;
  }
  return "";
}

// Lets the node's input be an attribute that holds the value as it is after `writes`.
void fold(Node* node, size_t index, const Nodes& writes, const std::vector<KnownSize>& sizes,
          Method& method, Program& program) {
  Value* value = node->input(index);
  Evaluator evaluator(program.module);
  for (const auto& [size, number] : sizes) evaluator.set(size, number);
  auto result = evaluator.evaluate(value);
  for (const Node* write : writes) {
    if (!evaluator.run(write)) return;
  }
  if (!result || !result->isTensor()) return;
  const std::string path = firstAttribute(value);
  const auto [owner, name] = ownerOf(program.module, path.empty() ? "weight" : path);
  const std::string prefix = path.substr(0, path.empty() ? 0 : path.size() - name.size());
  const std::string folded = prefix + freeAttributeName(owner, name + "_folded");
  setTensorAttribute(program.module, folded, result->toTensor().detach().clone());
  Value* read =
      insertAttributeRead(*method.graph, folded, program.module, *method.graph->nodes().begin());
  if (writes.empty() && sizes.empty()) {
    value->replaceAllUsesWith(read);
  } else {
    node->replaceInput(index, read);  // others may read it between the writes, or elsewhere
  }
}

}  // namespace

void foldWeights(Program& program) {
  for (Method& method : program.methods) {
    std::optional<Constancy> constancy;
    for (Node* node : nodesWhere(*method.graph, hasWeights)) {
      if (constancy) constancy->enter(node->owningBlock());
      for (const size_t index : weightInputs().at(node->kind())) {
        Value* value = node->input(index);
        if (constantOrAttribute(value, program.module) || !isTensor(value)) continue;
        if (!constancy) constancy.emplace(method, program.module).enter(node->owningBlock());
        if (const auto writes = constancy->writesBefore(node, value)) {
          fold(node, index, *writes, constancy->sizes(), method, program);
        }
      }
    }
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
