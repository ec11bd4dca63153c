#pragma once
// What the passes work on: one flattened module, the graphs of its kept methods, and what is
// known about their ops.

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace jitquant {

namespace jit = torch::jit;

// How activations are quantized: by calibrated qparams; by the op itself, with qparams of the
// values that it is given; or not at all, beside weights of float16 or the packed table of an
// embedding.
enum class Activations { kStatic, kDynamic, kFloat, kByteRows, kFourBitRows };

// The observers that one qconfig asks for. Both are templates: each use works on a deep copy.
struct ObserverPair {
  jit::Module activation;
  jit::Module weight;
  Activations activations = Activations::kStatic;
  bool reduce_range = false;  // dynamic: 7 bits

  // Reads the rest from the modules.
  static ObserverPair of(const jit::Module& activation, const jit::Module& weight);
};

// Decisions that leave an op float: its qconfig is None; nothing was said of it; or it is a layer
// without a form for its qconfig, which is dynamic, asks for float16, or is for tables.
inline constexpr int64_t kLeftFloat = -1;
inline constexpr int64_t kNoRule = -2;
inline constexpr int64_t kNoDynamicForm = -3;
inline constexpr int64_t kNoFloat16Form = -4;
inline constexpr int64_t kNoTable = -5;

// One listed op. The records of a program are in graph order, so that they find their nodes
// again after the model was saved and loaded.
struct OpRecord {
  std::string method;
  std::string kind;           // "aten::conv2d"
  std::string path;           // module path, "" for the root
  std::string source;         // "resnet.py:92", "" if unknown
  int64_t qconfig = kNoRule;  // index into Program::qconfigs, negative: stays float
  bool int8 = false;
  std::string reason;    // why it stays float, or how it is int8
  int64_t part_of = -1;  // index of the record of the op that absorbs it, -1 if none does
  // Of a converted model: the kind of the node that computes its value, and which of the nodes of
  // that kind in the method's graph, counted from 0. Several where a loop was unrolled, none where
  // no node does.
  std::string value_kind = {};
  std::vector<int64_t> value_nodes = {};
};

// One op of the normal form, as configuration sees it.
struct ConfiguredOp {
  std::string method;
  std::string kind;     // "aten::linear"
  std::string written;  // the op that the user's code or its trace has there: "aten::addmm"
  std::string path;     // module path, "" for the root
  std::string source;   // "resnet.py:92", "" if unknown
  // Equal for ops that one op of the user's code became, in order of the first of them.
  int64_t origin = 0;
};

// Quantization parameters, per tensor (one element) or per channel.
struct QParams {
  at::Tensor scale;       // float32 (1,) or (channels,)
  at::Tensor zero_point;  // int64 (1,) or (channels,)
  int64_t axis = -1;      // channel axis, -1 per tensor
  at::ScalarType dtype = at::kQUInt8;
  int64_t quant_max = 255;  // highest integer that the observer means to use

  double scalarScale() const { return static_cast<double>(scale.item<float>()); }
  int64_t scalarZeroPoint() const { return zero_point.item<int64_t>(); }
};

// What calibration left at one value.
struct Observation {
  std::optional<QParams> qparams;            // none for a value of which only shapes are kept
  std::vector<std::vector<int64_t>> shapes;  // one per rank seen
  std::vector<int64_t> dtypes;               // as ScalarType
  int64_t calls = 0;
  std::string problem;  // why it cannot be quantized, as in "is Long"; "" if it can
};

// A tensor argument of forward, as calibration passed it.
struct InputSeen {
  std::string name;
  std::vector<int64_t> shape;  // empty together with dtype -1: never seen
  int64_t dtype = -1;          // ScalarType
};

// One tensor of an op in float and in int8.
struct LoweredResult {
  jit::Value* float_output;  // dequantized reference, before quantization
  jit::Value* int8_output;   // the int8 value that replaced it
  jit::Node* quantize;       // quantize_per_tensor of float_output; null after an op that moves
};

// An op with its fused activation: what lower made, and what it stands for.
struct Lowering {
  jit::Node* float_op;
  std::vector<LoweredResult> results;
  std::vector<jit::Value*> dequantized;  // data inputs of float_op
};

// A dynamic op, which reads and gives float, and what it stands for.
struct DynamicLowering {
  jit::Node* float_op;
  jit::Value* input;                         // what float_op read before its input was rounded
  std::vector<jit::Value*> float_outputs;    // of float_op, or of the relu behind it
  std::vector<jit::Value*> dynamic_outputs;  // in the same order
};

// An embedding, and what gives its rows from a packed table.
struct TableLowering {
  jit::Node* float_op;
  jit::Value* lowered;
};

struct Plan;
struct Target;

struct Method {
  std::string name;
  std::shared_ptr<jit::Graph> graph;
  std::shared_ptr<const Plan> plan;  // set by plan
};

struct Program {
  jit::Module module;
  std::vector<Method> methods;
  const Target* target = nullptr;
  std::vector<ObserverPair> qconfigs;
  std::vector<OpRecord> records;
  std::vector<std::string> written;  // kinds of all ops of the user's code, sorted
  // Filled by collect_observers and used by the convert passes. Looked up, never iterated.
  std::unordered_map<const jit::Value*, Observation> observations;
  std::vector<Lowering> lowerings;
  std::vector<DynamicLowering> dynamic_lowerings;
  std::vector<TableLowering> table_lowerings;
  std::unordered_map<const jit::Value*, QParams> moved;  // qparams of int8 values that moved on
};

}  // namespace jitquant
