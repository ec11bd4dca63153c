// lower_tables: an embedding looks its rows up in the packed table.
//
// Before:
//   %u = quantized::embedding_bag_byte_unpack(%rows)
//   %y = aten::embedding(%u, %i, ...)      uses of %y
// After, with a bag for each index:
//   %column = aten::reshape(%i, [-1, 1])
//   %r = quantized::embedding_bag_byte_rowwise_offsets(%rows, %column, ...)
//   %shape = aten::add(aten::size(%i), [columns])
//   %q = aten::view(%r, %shape)            uses of %q
// Bags are summed by the same op; a mean is that sum over the number of rows, which are at least 1.
//
// Needs:  quantize_tables.
// Leaves: the float ops, unused, for verify_tables to compare with.

#include <ATen/ATen.h>

#include "dynamic.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"
#include "tables.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Writer {
 public:
  Writer(Node* embedding, const TableRow& row)
      : node_(embedding), row_(row), rows_(embedding->input(0)->node()->input(0)) {}

  Value* lookUp(int64_t columns) {
    Value* column = op("reshape", {node_->input(1), constant(std::vector<int64_t>{-1, 1})});
    Value* found = summed(column, constant({}), constant({}), constant(false));
    Value* sizes = op("size", {node_->input(1)});
    sizes->setType(c10::ListType::ofInts());
    Value* shape = op("add", {sizes, constant(std::vector<int64_t>{columns})});
    shape->setType(c10::ListType::ofInts());
    return op("view", {found, shape});
  }

  Value* bag() {
    Value* sum = summed(node_->input(1), node_->input(2), node_->input(kBagWeights),
                        node_->input(kBagLastOffset));
    if (constantNumber(node_->input(kBagMode)) == kSum) return sum;
    Value* at_least_one = op("clamp_min", {numbersOfRows(), constant(1)});
    return op("div", {sum, op("unsqueeze", {at_least_one, constant(1)})});
  }

 private:
  // (bags,), of the offsets' dtype
  Value* numbersOfRows() {
    Value* offsets = node_->input(2);
    Value* end = constant({});
    if (constantNumber(node_->input(kBagLastOffset)) == 0.0) {
      Value* total = op("numel", {node_->input(1)});
      total->setType(c10::IntType::get());
      end = op("new_full", {offsets, constant(std::vector<int64_t>{1}), total, constant({}),
                            constant({}), constant({}), constant({})});
    }
    return op("diff", {offsets, constant(1), constant(-1), constant({}), end});
  }

  Value* summed(Value* indices, Value* offsets, Value* weights, Value* has_last_offset) {
    Value* no = constant(false);
    return insertOp(
        node_, c10::Symbol::fromQualString(row_.look_up),
        {rows_, indices, offsets, no, constant(0), no, weights, constant({}), has_last_offset});
  }

  Value* constant(const at::IValue& value) { return insertConstantBefore(node_, value); }

  Value* op(const char* name, at::ArrayRef<Value*> inputs) {
    return insertOp(node_, c10::Symbol::aten(name), inputs);
  }

  Node* node_;
  const TableRow& row_;
  Value* rows_;
};

}  // namespace

void lowerTables(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (method.plan->tables.count(node) == 0) continue;
      OpRecord& record = program.records[*mark(node, kOpMark)];
      const TableRow& row = *tableRow(node, record.qconfig, program);
      Writer writer(node, row);
      const Value* table = unrounded(node->input(0));
      Value* lowered = node->kind() == c10::aten::embedding
                           ? writer.lookUp(constantTensor(table, program.module)->size(1))
                           : writer.bag();
      lowered->copyMetadata(node->output(0));
      node->output(0)->replaceAllUsesWith(lowered);
      program.table_lowerings.push_back({node, lowered});
      record.reason = row.look_up;
    }
  }
}

}  // namespace jitquant
