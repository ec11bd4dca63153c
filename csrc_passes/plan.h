#pragma once
// What the plan pass decides. The passes after it apply the plan and decide nothing.

#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "op_table.h"

namespace jitquant {

struct ObservedValue {
  jit::Value* value;
  int64_t qconfig;
};

// The plan of one method's graph. The pointer-keyed members are looked up, never iterated.
struct Plan {
  std::unordered_set<const jit::Node*> int8;                       // ops to become int8
  std::unordered_map<const jit::Node*, jit::Node*> activation_of;  // op -> activation it absorbs
  std::unordered_map<const jit::Node*, jit::Node*> absorbed_by;    // activation -> op
  // Layers that quantize what they read themselves, with the relu that each takes along or null.
  std::unordered_map<const jit::Node*, jit::Node*> dynamic;
  std::unordered_set<const jit::Node*> tables;  // embeddings whose table is packed
  std::vector<ObservedValue> observed;          // values that get qparams, in graph order
  // Outputs of branches and values that go round a loop, which only int8 ops read.
  std::unordered_set<const jit::Value*> joined;
  // int8 value -> the one in `joined` that it becomes, whose qparams it has; and the other way
  // round.
  std::unordered_map<const jit::Value*, jit::Value*> joins;
  std::unordered_map<const jit::Value*, std::vector<jit::Value*>> members;
  // Further inputs of ops that verify will run, and of the method itself.
  std::vector<jit::Value*> shapes_only;

  // The op's output after the activation that it absorbs.
  jit::Value* outputOf(jit::Node* op) const;
  // Whether an int8 op reads `use` as quantized data.
  bool isInt8Use(const jit::Use& use) const;
};

// The reason of ops on int8 values that the model had already.
inline constexpr const char* kInt8Before = "it was int8 before";

// The ops of a method in graph order: those that compute tensors.
std::vector<jit::Node*> listedNodes(const Method& method);
// Lists the ops of the program in graph order into Program::records and marks their nodes.
void listOps(Program& program);
// Marks the nodes with the records that the program already has; raises where they do not match.
void attachRecords(Program& program);
// Says of a listed op that it is not int8 after all.
void leaveFloat(Program& program, const jit::Node* op, const std::string& reason);
// Says so in the records whose nodes were folded away since.
void noteRemovedOps(Program& program);

}  // namespace jitquant
