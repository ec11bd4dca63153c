// insert_observers: applies the plan. Each observed value passes through an observer of its own.
//
// Before:
//   %y = aten::conv2d(%x, ...); %z = aten::relu(%y)
// After:
//   %o0 = GetAttr[name="jitquant_observer_0"](%self); %x1 = CallMethod[name="forward"](%o0, %x)
//   %y = aten::conv2d(%x1, ...); %z = aten::relu(%y)
//   %o1 = GetAttr[name="jitquant_observer_1"](%self); %z1 = CallMethod[name="forward"](%o1, %z)
//
// Needs:  plan.
// Leaves: every other value. Weights are observed at convert, once, by the templates that are
//         attached here; a dynamic qconfig leaves that of activations too, which says so.

#include "attributes.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "plan.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

void insertCall(jit::Graph& graph, const c10::TypePtr& type, const std::string& name,
                Value* value) {
  Node* producer = value->node();
  // createGetAttr would look for the name among all attributes.
  Node* read = graph.create(c10::prim::GetAttr, {graph.inputs()[0]});
  read->s_(c10::attr::name, name);
  read->output()->setType(type)->setDebugName(name);
  if (producer->kind() == c10::prim::Param) {
    read->insertBefore(*producer->owningBlock()->nodes().begin());
  } else {
    read->insertAfter(producer);
  }
  Node* call = graph.create(c10::prim::CallMethod, {read->output()});
  call->s_(c10::attr::name, "forward");
  call->insertAfter(read);
  call->output()->setType(c10::TensorType::get());
  value->replaceAllUsesWith(call->output());
  call->addInput(value);
}

}  // namespace

void insertObservers(Program& program, const jit::Module& shape_recorder) {
  int64_t next = 0;
  const auto insert = [&](Method& method, Value* value, const jit::Module& observer) {
    const std::string name = kObserverPrefix + std::to_string(next++);
    const jit::Module copy = observer.deepcopy();
    addModule(program.module, name, copy);
    method.graph->inputs()[0]->setType(program.module.type());
    insertCall(*method.graph, copy.type(), name, value);
  };
  for (Method& method : program.methods) {
    for (const ObservedValue& observed : method.plan->observed) {
      insert(method, observed.value, program.qconfigs[observed.qconfig].activation);
    }
    for (Value* value : method.plan->shapes_only) insert(method, value, shape_recorder);
  }
  for (size_t i = 0; i < program.qconfigs.size(); ++i) {
    const ObserverPair& qconfig = program.qconfigs[i];
    program.module.register_module(kWeightPrefix + std::to_string(i), qconfig.weight.deepcopy());
    if (qconfig.activations == Activations::kStatic) continue;
    program.module.register_module(kDynamicPrefix + std::to_string(i),
                                   qconfig.activation.deepcopy());
  }
}

}  // namespace jitquant
