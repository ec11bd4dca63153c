#pragma once
// What the plan pass knows while it decides.

#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ir_util.h"
#include "plan.h"

namespace jitquant {

// Ends the reason of all ops of a branch or loop that calibration did not reach.
inline constexpr const char* kNeverRan = "never ran in calibration, or on empty tensors only";

// The containers keyed by pointers are looked up, never iterated.
struct PlanDraft {
  PlanDraft(Program& of, Method& in) : program(of), method(in) {}

  Program& program;
  Method& method;
  std::shared_ptr<Plan> plan = std::make_shared<Plan>();
  std::vector<jit::Node*> listed;                         // ops with a record, in graph order
  std::unordered_set<const jit::Node*> candidates;        // those with no reason to stay float
  std::unordered_map<const jit::Value*, int64_t> needed;  // value -> qconfig of its first reader

  OpRecord& record(const jit::Node* node) const { return program.records[*mark(node, kOpMark)]; }
  // Whether a listed op's qconfig asks for qparams from calibration.
  bool isStatic(const jit::Node* node) const;
  bool isCandidate(const jit::Node* node) const { return candidates.count(node) != 0; }
  bool isCompute(const jit::Node* node) const;
  // Takes its qparams from its input.
  bool isPassing(const jit::Node* node) const;
  // Observed, to know whether the qparams of its input suit it.
  bool isAverage(const jit::Node* node) const;
  bool isObserved(const jit::Value* value) const;
  bool isInt8Output(const jit::Value* value) const;
  // The activation that alone follows an op and that the op can absorb.
  jit::Node* absorbable(const jit::Node* op) const;
  // What an op that passes values on made `value` of.
  static jit::Value* passedOn(const jit::Value* value);
  // The value whose qparams `value` has: up through ops that only move values.
  jit::Value* root(jit::Value* value) const;
};

// At convert: ops that calibration never ran, or could not give qparams, become float.
void dropUncalibrated(PlanDraft& draft);
// The outputs of branches and the values of loops that int8 ops alone read.
void joinValues(PlanDraft& draft);
// What is written with the qparams of a concatenation.
void shareQParamsOfCats(PlanDraft& draft);
// The values that get an observer.
void listObserved(PlanDraft& draft);

}  // namespace jitquant
