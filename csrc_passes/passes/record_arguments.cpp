// record_arguments: what the first call of forward gets besides tensors is kept, for the trial run
// of the converted model.
//
// Before:
//   forward(self, %x : Tensor, %n : int, %masks : Tensor[]): ...
// After:
//   forward(self, %x : Tensor, %n : int, %masks : Tensor[]):
//     %r = GetAttr[name="jitquant_observer_arguments"](%self)
//     %none = CallMethod[name="forward"](%r, %n, %masks); ...      %r.seen is (n, masks)
//
// Needs:  insert_observers, since it changes the type of the module.
// Leaves: a forward that takes tensors only, whose shapes have observers of their own, or an object
//         of a class. Of tensors in containers shape and dtype are kept, as a zero that is
//         expanded.

#include <algorithm>

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using c10::TypePtr;
using jit::Node;
using jit::Value;

namespace {

bool canCopy(const TypePtr& type) {
  const auto inner = type->containedTypes();
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::StringType:
      return true;
    case c10::TypeKind::ListType:
    case c10::TypeKind::DictType:
    case c10::TypeKind::TupleType:
    case c10::TypeKind::OptionalType:
      return !inner.empty() && std::all_of(inner.begin(), inner.end(), canCopy);
    default:
      return false;
  }
}

// With tuples for named tuples, whose names no source text could resolve.
TypePtr withoutNames(const TypePtr& type) {
  std::vector<TypePtr> inner;
  for (const TypePtr& contained : type->containedTypes()) inner.push_back(withoutNames(contained));
  if (type->kind() == c10::TypeKind::TupleType) return c10::TupleType::create(std::move(inner));
  return inner.empty() ? type : type->withContained(std::move(inner));
}

// Methods that copy values, one for each type, in the language of TorchScript.
class CopyMethods {
 public:
  // The call that copies `value`.
  std::string call(const TypePtr& type, const std::string& value) {
    const std::string text = type->annotation_str();
    if (names_.count(text) == 0) {
      const std::string result = body(type);
      const std::string name = "copy_" + std::to_string(names_.size());
      source_ += "def " + name + "(self, x: " + text + ") -> " + text + ":\n" + result;
      names_[text] = name;
    }
    return "self." + names_[text] + "(" + value + ")";
  }

  const std::string& source() const { return source_; }

 private:
  std::string body(const TypePtr& type) {
    const auto inner = type->containedTypes();
    switch (type->kind()) {
      case c10::TypeKind::TensorType:  // 0 is uint8, as there is no zero of a quantized dtype
        return "  dtype = 0 if x.is_quantized else x.dtype\n"
               "  return torch.zeros([], dtype=dtype).expand(x.size())\n";
      case c10::TypeKind::ListType:
        return "  return [" + call(inner[0], "v") + " for v in x]\n";
      case c10::TypeKind::DictType:
        return "  return {k: " + call(inner[1], "x[k]") + " for k in x.keys()}\n";
      case c10::TypeKind::OptionalType:
        return "  if x is None:\n    return None\n  return " + call(inner[0], "x") + "\n";
      case c10::TypeKind::TupleType: {
        std::string elements;
        for (size_t i = 0; i < inner.size(); ++i) {
          elements += call(inner[i], "x[" + std::to_string(i) + "]") + ", ";
        }
        return "  return (" + elements + ")\n";
      }
      default:
        return "  return x\n";
    }
  }

  std::map<std::string, std::string> names_;  // of a type's text
  std::string source_;
};

jit::Module recorderOf(const std::vector<Value*>& arguments) {
  CopyMethods copies;
  std::string parameters, values;
  std::vector<TypePtr> types;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const TypePtr type = withoutNames(arguments[i]->type());
    const std::string name = "a" + std::to_string(i);
    parameters += ", " + name + ": " + type->annotation_str();
    values += copies.call(type, name) + ", ";
    types.push_back(type);
  }
  jit::Module recorder("__torch__.ArgumentRecorder");
  recorder.register_attribute("seen", c10::OptionalType::create(c10::TupleType::create(types)),
                              at::IValue());
  recorder.define(copies.source() + "def forward(self" + parameters +
                  ") -> None:\n  if self.seen is None:\n    self.seen = (" + values + ")\n");
  return recorder;
}

}  // namespace

void recordArguments(Program& program) {
  for (Method& method : program.methods) {
    if (method.name != "forward") continue;
    jit::Graph& graph = *method.graph;
    std::vector<Value*> arguments;
    for (Value* input : graph.inputs().slice(1)) {
      if (isTensor(input)) continue;
      if (!canCopy(input->type())) return;
      arguments.push_back(input);
    }
    if (arguments.empty()) return;
    const jit::Module recorder = recorderOf(arguments);
    program.module.register_module(kArgumentRecorder, recorder);
    graph.inputs()[0]->setType(program.module.type());
    Node* first = *graph.nodes().begin();
    Node* read = graph.createGetAttr(graph.inputs()[0], kArgumentRecorder);
    read->output()->setType(recorder.type());
    read->insertBefore(first);
    arguments.insert(arguments.begin(), read->output());
    Node* call = graph.create(c10::prim::CallMethod, arguments);
    call->s_(c10::attr::name, "forward");
    call->output()->setType(c10::NoneType::get());
    call->insertBefore(first);
  }
}

void dropArgumentRecorder(Program& program) {
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (observerCall(node) == kArgumentRecorder) node->destroy();
    }
  }
}

}  // namespace jitquant
