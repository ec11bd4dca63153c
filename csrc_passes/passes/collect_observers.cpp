// collect_observers: takes the observers out of a calibrated graph and keeps what they saw.
//
// Before:
//   %o = GetAttr[name="jitquant_observer_0"](%self); %x1 = CallMethod[name="forward"](%o, %x)
//   %y = aten::conv2d(%x1, ...)
// After:
//   %y = aten::conv2d(%x, ...)      observations: %x -> qparams, shapes
//
// Needs:  attachRecords, so that errors can say where a value comes from.
// Leaves: no observer. A value of a branch that never ran has no shapes, one that is not float32
//         or too small keeps the reason; a value that no run reached, or that was NaN or infinite,
//         raises.
//
// Where an op of fixed range (tanh) was to be int8 at prepare and is left float since, nothing
// observed its values. They are given the range that they have in int8.

#include <unordered_map>

#include "dead_code.h"
#include "drop_observers.h"
#include "error.h"
#include "ir_util.h"
#include "op_table.h"
#include "passes/passes.h"
#include "qparams.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

constexpr double kSmallestScale = 1.0 / (1 << 23);  // observers give no smaller one: 3.1e-5 / 255

// Between these TorchScript writes integral numbers, which all float32 of that size are, without a
// point or an exponent, and reads them as integers.
constexpr double kLargestWithPoint = 4294967296.0;
constexpr double kSmallestWithExponent = 1e17;

std::string describeValue(const Value* value, const Method& method) {
  const Node* producer = value->node();
  if (producer->kind() == c10::prim::Param) {
    return "the input '" + value->debugNameBase() + "' of " + method.name;
  }
  return "the output of " + describe(producer);
}

bool isNested(const Value* value, const Method& method) {
  return value->node()->owningBlock() != method.graph->block();
}

// A recorder of shapes has no quantized dtype.
bool givesQParams(const jit::Module& observer) {
  return observer.attr("dtype").toInt() != static_cast<int64_t>(at::kFloat);
}

bool rangeIsZero(const jit::Module& observer) {
  const auto isZero = [&](const char* name) {
    return observer.hasattr(name) && observer.attr(name).toTensor().eq(0).all().item<bool>();
  };
  return isZero("min_val") && isZero("max_val");
}

Observation read(jit::Module observer, const std::string& where, bool nested) {
  Observation observation;
  observation.calls = observer.attr("calls").toInt();
  for (const at::IValue& shape : observer.attr("shapes").toListRef()) {
    observation.shapes.push_back(shape.toIntVector());
  }
  observation.dtypes = observer.attr("seen_dtypes").toIntVector();
  if (!givesQParams(observer)) return observation;
  for (const int64_t dtype : observation.dtypes) {
    if (dtype == static_cast<int64_t>(at::kFloat)) continue;
    const auto* name = c10::toString(static_cast<at::ScalarType>(dtype));
    observation.problem = std::string("is ") + name + ", not float32";
    return observation;
  }
  if (observer.attr("saw_nan").toBool() || observer.attr("saw_inf").toBool()) {
    throw UserError(std::string("calibration saw ") +
                    (observer.attr("saw_nan").toBool() ? "NaN" : "an infinite value") + " in " +
                    where +
                    ". Look at the calibration data and at the float model's output there, or set "
                    "the qconfig of that module to None.");
  }
  if (observation.calls == 0) {
    if (!nested) {
      throw UserError("the observer of " + where +
                      " saw no data. Calibration must run every part of the model that is "
                      "converted, with inputs that are not empty.");
    }
    observation.problem = "was empty in all of calibration";
    return observation;
  }
  observation.qparams = readQParams(observer);
  if (!observation.qparams->scale.isfinite().all().item<bool>()) {
    throw UserError("the values of " + where +
                    " span more than float32 can scale. Set the qconfig of that module to None.");
  }
  const at::Tensor& scale = observation.qparams->scale;
  if ((scale > kLargestWithPoint).logical_and(scale < kSmallestWithExponent).any().item<bool>()) {
    throw UserError("the values of " + where +
                    " span between 1.1e+12 and 2.6e+19, and a TorchScript file cannot keep a scale "
                    "of that size. Set the qconfig of that module to None.");
  }
  if (observation.qparams->axis < 0 && observation.qparams->scalarScale() <= kSmallestScale) {
    observation.qparams.reset();
    observation.problem = rangeIsZero(observer)
                              ? "was zero in all of calibration"
                              : "spanned less than 3.1e-05 in calibration, too little for int8";
  }
  return observation;
}

void giveFixedQParams(Program& program, const Method& method) {
  for (const Node* node : allNodes(*method.graph)) {
    const auto index = mark(node, kOpMark);
    if (!index || program.records[*index].qconfig != kLeftFloat) continue;
    const OpRow* row = findRow(node);
    if (row == nullptr || row->role != Role::kFixedQParams) continue;
    const auto found = program.observations.find(node->output());
    if (found == program.observations.end()) continue;
    Observation& seen = found->second;
    if (seen.qparams || seen.shapes.empty() || !seen.problem.empty()) continue;
    seen.qparams = perTensor(row->fixed_scale, row->fixed_zero_point);
  }
}

// A node that calls an observer.
struct Call {
  Node* node;
  jit::Module observer;
};

// Those of each method. Finding a module by name takes as long as there are modules.
std::vector<std::vector<Call>> observerCalls(Program& program) {
  std::unordered_map<std::string, jit::Module> observers;
  for (const auto& child : program.module.named_children()) {
    if (isObserverName(child.name)) observers.emplace(child.name, child.value);
  }
  std::vector<std::vector<Call>> calls;
  for (Method& method : program.methods) {
    calls.emplace_back();
    for (Node* node : allNodes(*method.graph)) {
      if (const auto name = observerCall(node)) calls.back().push_back({node, observers.at(*name)});
    }
  }
  return calls;
}

void checkCalibrated(const std::vector<std::vector<Call>>& calls) {
  bool is_static = false;
  bool saw_floats = false;
  bool saw_others = false;
  for (const auto& of_method : calls) {
    for (const auto& [node, observer] : of_method) {
      // Recorders of shapes, which alone stand in a graph that is dynamic everywhere, need no data.
      is_static |= givesQParams(observer);
      saw_floats |= observer.attr("calls").toInt() > 0;
      saw_others |= !observer.attr("seen_dtypes").toIntVector().empty();
    }
  }
  if (!is_static || saw_floats) return;
  if (saw_others) {
    throw UserError(
        "calibration saw no floating point values, which alone can become int8: all that the "
        "prepared model ran on were integers or booleans.");
  }
  throw UserError(
      "the prepared model was not calibrated: no observer saw any data. Run the model that "
      "prepare_jit returned on sample inputs that are not empty before convert_jit.");
}

void removeAttributes(const jit::Module& module) {
  for (size_t i = module.type()->numAttributes(); i-- > 0;) {
    const std::string name = module.type()->getAttributeName(i);
    if (!isObserverName(name)) continue;
    module._ivalue()->unsafeRemoveAttr(name);
    module.type()->unsafeRemoveAttribute(name);
  }
}

}  // namespace

void collectObservers(Program& program) {
  const auto calls = observerCalls(program);
  checkCalibrated(calls);
  for (size_t i = 0; i < calls.size(); ++i) {
    const Method& method = program.methods[i];
    for (const auto& [node, observer] : calls[i]) {
      Value* value = node->input(1);
      program.observations[value] =
          read(observer, describeValue(value, method), isNested(value, method));
      replaceAndDestroy(node, value);
    }
    eliminateDeadCode(method.graph);
    giveFixedQParams(program, method);
  }
  readQConfigs(program);
  removeAttributes(program.module);
}

void dropObservers(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (observerCall(node)) replaceAndDestroy(node, node->input(1));
    }
    eliminateDeadCode(method.graph);
  }
  removeAttributes(program.module);
}

}  // namespace jitquant
