#pragma once
// A target is a set of int8 ops that lower can use. Everything that knows their names is in
// targets/; the passes read these rows.

#include <string>
#include <vector>

#include "op_table.h"

namespace jitquant {

using Shapes = std::vector<std::vector<int64_t>>;  // one shape per data input
using ShapeFilter = std::string (*)(const jit::Node*, const Shapes&);

// How one row of the op table is spelled in int8.
struct Int8Row {
  std::string row;           // OpRow::name
  std::string op;            // the int8 op; may be the float op, where that takes quantized tensors
  std::string relu_op = {};  // the same with a fused relu, "" if there is none
  std::string prepack = {};  // the op that packs weight and bias, "" if there are none
  std::vector<size_t> prepack_args = {};  // inputs of the float op that it takes
  std::vector<size_t> args = {};          // inputs of the float op that the int8 op takes
  bool takes_qparams = false;             // output scale and zero point come behind the args
  // Why stock kernels should not run this very node, or "".
  OpRow::Filter unfit = nullptr;
  int64_t tolerance = 1;  // most steps between the int8 op and dequantize-op-quantize
  std::vector<at::IValue> constants = {};  // further arguments between the args and the qparams
  std::vector<size_t> late_args = {};      // inputs of the float op that come behind the qparams
  // Why the int8 op should not run on inputs of these shapes, or "". Asked at convert.
  ShapeFilter slow_shape = nullptr;
  // Whether two inputs change places so that the first is the larger one: the kernel gives its
  // output the first one's shape, and warns where it has to resize that.
  bool larger_first = false;
  // How many groups of zeros a grouped convolution lacks to be fast, see pad_groups.
  int64_t (*missing_groups)(const jit::Node*, const jit::Module&) = nullptr;
};

// How a layer is spelled with packed weights and float activations.
struct DynamicRow {
  std::string row;  // OpRow::name
  Activations activations;
  std::string op;
  std::string relu_op = {};
  std::string prepack;              // takes weight and bias
  bool takes_reduce_range = false;  // behind the packed weight, or in the op of the cell
  // An LSTM or GRU: the op that joins the packed weights of one cell, "" for others; whether it
  // takes the biases too; and what comes behind the arguments of the float op.
  std::string cell = {};
  bool cell_takes_biases = false;
  std::vector<at::IValue> constants = {};
};

// A layer and the op that reads its result, as one op.
struct FusedRow {
  std::string layer;
  std::string behind;
  std::string op;
  bool overwrites = false;        // it puts the result where the second operand of `behind` was
  std::vector<size_t> args = {};  // inputs of `behind` that it takes last
};

// How the table of an embedding is packed: into a tensor of bytes.
struct TableRow {
  Activations rows;
  std::string pack;
  std::string unpack;
  std::string look_up;                     // sums rows, by bags
  std::vector<at::IValue> pack_constants;  // further arguments of `pack`
  // Why the packed table would not do for this one, or "".
  std::string (*problem)(const at::Tensor& table);
};

struct Target {
  std::string name;
  std::vector<Int8Row> rows;
  std::vector<DynamicRow> dynamic_rows;
  std::vector<FusedRow> fused_rows;
  std::vector<TableRow> table_rows;
  // The weight's qparams, with scales enlarged where the target's kernels would overflow.
  QParams (*safeWeightQParams)(const at::Tensor& weight, const QParams& qparams);

  const Int8Row* find(const OpRow& row) const { return find(row.name); }
  const Int8Row* find(const std::string& row) const;
  const DynamicRow* findDynamic(const std::string& row, Activations activations) const;
  const TableRow* findTable(Activations rows) const;
  // Whether the engine that is set has the fused rows.
  bool fusesLayers() const;
  const FusedRow* findFused(const jit::Node* layer, const jit::Node* behind) const;
  // Whether the op packs a weight, or joins packed ones.
  bool isPrepack(const jit::Node* node) const;
};

// torch's quantized::* ops on quantized tensors.
const Target& quantizedTarget();

}  // namespace jitquant
