#pragma once
// The op table: one row per float op that can become int8. Read by plan, insert_qdq, propagate,
// lower, coverage and the generated documentation. Knows nothing of any target's int8 ops.

#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace jitquant {

enum class Role {
  kWeighted,      // weight quantized and prepacked, bias float, output observed
  kRecurrent,     // weights quantized and prepacked, by a dynamic qconfig only
  kObserved,      // inputs and output have qparams of their own
  kFixedQParams,  // the output's qparams follow from the op's range
  kSharesInput,   // moves values: the output has the input's qparams
  kAverages,      // the output is rounded to the input's qparams
  kActivation,    // limits the range: absorbed by the op before it, else float
  kMetadata,      // reads no values
};

const char* roleName(Role role);

struct OpRow {
  // A filter answers "" or why this very node stays float.
  using Filter = std::string (*)(const jit::Node*, const jit::Module&);
  using Selector = bool (*)(const jit::Node*);

  std::string name;  // "aten::add.Scalar"; the part before the dot is the op
  Role role;
  std::vector<size_t> data;  // inputs that carry quantized values (Tensor or Tensor[])
  Filter filter = nullptr;
  Selector selects = nullptr;  // which overload or operand form the row is for; null: all
  double fixed_scale = 0.0;
  int64_t fixed_zero_point = 0;

  c10::Symbol kind() const;
};

const std::vector<OpRow>& opTable();
const OpRow* findRow(const jit::Node* node);

// The tensors that an op gives: its tensor output, or what is read from its list of tensors.
std::vector<jit::Value*> resultsOf(const jit::Node* op);
// The op that a tensor comes from: behind a read of a list, the op that gave the list.
jit::Node* sourceOf(const jit::Value* value);
// Why the list that an op gives cannot be one of int8 tensors; "" if it can, or is no list.
std::string listProblem(const jit::Node* op);

// "" or why the layer `node` cannot have this weight in int8; raises where that is the user's
// mistake.
std::string whyNotWeight(const jit::Value* weight, const jit::Node* node,
                         const jit::Module& module);

// The tensors that a node reads as quantized data; the elements of a list operand.
std::vector<jit::Value*> dataInputs(const jit::Node* node, const OpRow& row);

// [lowest, highest] of relu, relu6, hardtanh, clamp with constant bounds; may be infinite.
std::optional<std::pair<double, double>> activationBounds(const jit::Node* node);
// Whether an activation is relu, in whatever spelling.
bool isRelu(const jit::Node* activation);

// The constant that mul, div or neg multiplies its first input with.
std::optional<double> constantFactor(const jit::Node* node);

// Whether an op of the table computes nothing: its output holds values of its input.
bool onlyMoves(const jit::Node* node);

// qparams of the output of a kSharesInput op.
QParams sharedQParams(const jit::Node* node, const QParams& input);

}  // namespace jitquant
