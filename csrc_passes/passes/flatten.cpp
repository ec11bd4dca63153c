// flatten: a fresh module tree with one ClassType per instance, and methods with all calls inlined.
//
// Before:
//   forward(self, x):  %c = GetAttr[name="conv"](%self); %y = CallMethod[name="forward"](%c, %x)
// After:
//   forward(self, x):  %c = GetAttr[name="conv"](%self); %w = GetAttr[name="weight"](%c)
//                      %y = aten::conv2d(%x, %w, ...), scope: conv
//
// Needs:  nothing; the original is only read.
// Leaves: observers' calls. Parameters are shared with the original. Everything else, also class
//         types that are not modules, moves into a CompilationUnit of the new module's own, so
//         that nothing of the original has to stay alive and nothing of the copy outlives it.

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inline_fork_wait.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/shape_analysis.h>

#include <algorithm>

#include "alias.h"
#include "error.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using at::IValue;
using c10::ClassType;
using c10::ClassTypePtr;
using c10::TypePtr;
using jit::Block;
using jit::Node;
using jit::Value;

namespace {

// Without the process-wide mangling counter, so that names do not depend on what ran before.
c10::QualifiedName cleanName(const c10::QualifiedName& name) {
  std::vector<std::string> atoms;
  for (const std::string& atom : name.atoms()) {
    if (atom.rfind("___torch_mangle_", 0) != 0) atoms.push_back(atom);
  }
  return c10::QualifiedName(atoms);
}

bool isTorchbind(const ClassType& type) {
  return type.name() && type.name()->qualifiedName().rfind("__torch__.torch.classes.", 0) == 0;
}

class TreeCopy {
 public:
  explicit TreeCopy(const jit::Module& original) : held_(heldStorages(original)) {}

  jit::Module copyModule(const jit::Module& original, const std::string& path) {
    const auto found = modules_.find(original._ivalue().get());
    if (found != modules_.end()) return found->second;
    const ClassTypePtr type = original.type();
    jit::Module copy(cleanName(*type->name()), unit_, /*shouldMangle=*/true);
    modules_.emplace(original._ivalue().get(), copy);
    for (size_t i = 0; i < type->numConstants(); ++i) {
      copy.type()->addConstant(type->getConstantName(i), type->getConstant(i));
    }
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      const std::string& name = type->getAttributeName(i);
      const IValue& value = original._ivalue()->getSlot(i);
      const std::string child = path.empty() ? name : path + "." + name;
      if (isObserverName(name)) {
        copy.register_module(name, value.toModule());
      } else if (type->getAttribute(i)->kind() == c10::TypeKind::InterfaceType) {
        throw UserError("the submodule '" + child + "' is typed as the interface " +
                        type->getAttribute(i)->annotation_str() +
                        "; which code it runs is only known at run time, so it cannot be "
                        "quantized. Freeze the model first (torch.jit.freeze inlines interface "
                        "calls), or give the attribute a concrete module type.");
      } else if (type->getAttribute(i)->is_module()) {
        copy.register_module(name, copyModule(value.toModule(), child));
      } else {
        const TypePtr mapped = remap(type->getAttribute(i));
        copy.type()->addAttribute(name, mapped, type->is_parameter(i), type->is_buffer(i));
        copy._ivalue()->setAttr(name, copyValue(value));
      }
    }
    return copy;
  }

  TypePtr remap(const TypePtr& type) {
    if (const auto cls = type->cast<ClassType>()) {
      return cls->is_module() || isTorchbind(*cls) ? type : TypePtr(copyClass(cls));
    }
    const auto contained = type->containedTypes();
    if (contained.empty()) return type;
    std::vector<TypePtr> mapped;
    bool changed = false;
    for (const TypePtr& inner : contained) {
      mapped.push_back(remap(inner));
      changed = changed || mapped.back() != inner;
    }
    return changed ? type->withContained(std::move(mapped)) : type;
  }

  void copyMethod(const jit::Module& copy, const jit::Function& method) {
    auto graph = inlinedGraph(method);
    graph->remapTypes([this](const TypePtr& type) { return remap(type); });
    retype(graph->block(), graph->inputs()[0], copy);
    define(copy.type(), method, graph);
  }

  // Inlines every call; the nodes keep the module path that they came from.
  static std::shared_ptr<jit::Graph> inlinedGraph(const jit::Function& method) {
    auto& function = const_cast<jit::Function&>(method);
    function.ensure_defined();
    auto graph = jit::toGraphFunction(function).graph()->copy();
    for (Node* node : allNodes(*graph)) setModulePath(node, modulePath(node));
    inlineCalls(*graph->nodes().begin(), graph->return_node());
    jit::InlineForkWait(graph);
    inlineCalls(*graph->nodes().begin(), graph->return_node());
    // Tracing recorded the shapes of one run; what holds for all runs is not among them.
    jit::EraseShapeInformation(graph);
    jit::EliminateDeadCode(graph);
    return graph;
  }

 private:
  static void inlineCalls(Node* begin, Node* end) {
    for (Node* node = begin; node != end;) {
      Node* next = node->next();
      for (Block* inner : node->blocks())
        inlineCalls(*inner->nodes().begin(), inner->return_node());
      const bool is_call =
          node->kind() == c10::prim::CallMethod || node->kind() == c10::prim::CallFunction;
      if (is_call && !observerCall(node)) inlineCall(node);
      node = next;
    }
  }

  static void inlineCall(Node* call) {
    jit::GraphFunction* callee = jit::tryToGraphFunction(call);
    if (callee == nullptr) {
      throw UserError("the call of " + describe(call) +
                      " cannot be inlined, since which code it runs is only known at run time. "
                      "Freeze the model first (torch.jit.freeze), or call a concrete module.");
    }
    std::string path = modulePath(call);
    if (call->kind() == c10::prim::CallMethod) {
      if (const auto receiver = attributePath(call->input(0))) path = *receiver;
    } else {
      call->removeInput(0);  // the function itself
    }
    callee->ensure_defined();
    const jit::SourceRange range = call->sourceRange();
    Node* before = call->prev();
    Node* after = call->next();
    {
      const jit::WithInsertPoint guard(call);
      const auto outputs = jit::insertGraph(*call->owningGraph(), *callee->graph(), call->inputs());
      for (size_t i = 0; i < outputs.size(); ++i) {
        call->output(i)->replaceAllUsesWith(outputs[i]);
      }
      call->destroy();
    }
    for (Node* node = before->next(); node != after; node = node->next()) {
      label(node, path, range);
    }
    inlineCalls(before->next(), after);
  }

  // The module path, and the user's line instead of one inside torch.
  static void label(Node* node, const std::string& path, const jit::SourceRange& call) {
    setModulePath(node, path);
    if (isInsideTorch(node)) node->setSourceRange(call);
    for (Block* block : node->blocks()) {
      for (Node* inner : block->nodes()) label(inner, path, call);
    }
  }

  static bool isInsideTorch(const Node* node) {
    const auto place = node->sourceRange().file_line_col();
    return place ? isTorchFile(std::get<0>(*place)) : sourceLine(node).empty();
  }

  // Gives the chains of submodule reads the types of the new tree.
  static void retype(Block* block, Value* self, const jit::Module& copy) {
    self->setType(copy.type());
    for (Node* node : block->nodes()) {
      for (Block* inner : node->blocks()) retype(inner, self, copy);
      if (node->kind() != c10::prim::GetAttr) continue;
      const auto owner = node->input()->type()->cast<ClassType>();
      if (owner && owner->is_module()) {
        node->output()->setType(owner->getAttribute(node->s(c10::attr::name)));
      }
    }
  }

  void define(const ClassTypePtr& owner, const jit::Function& original,
              const std::shared_ptr<jit::Graph>& graph) {
    const c10::QualifiedName name(*owner->name(), original.name());
    jit::Function* function = unit_->create_function(name, graph);
    // Call stacks point into the original's functions, which need not outlive this.
    for (Node* node : allNodes(*graph)) {
      if (!node->callstack()) continue;
      node->setCallStack(c10::make_intrusive<jit::InlinedCallStack>(function, node->sourceRange()));
    }
    const c10::FunctionSchema& schema = original.getSchema();
    auto arguments = remapAll(schema.arguments());
    arguments[0] = c10::Argument(arguments[0].name(), owner);
    function->setSchema(c10::FunctionSchema(schema.name(), schema.overload_name(),
                                            std::move(arguments), remapAll(schema.returns()),
                                            schema.is_vararg(), schema.is_varret()));
    owner->addMethod(function);
  }

  std::vector<c10::Argument> remapAll(const std::vector<c10::Argument>& arguments) {
    std::vector<c10::Argument> mapped;
    for (const c10::Argument& argument : arguments) {
      mapped.push_back(argument.cloneWithType(remap(argument.type())));
    }
    return mapped;
  }

  ClassTypePtr copyClass(const ClassTypePtr& original) {
    const auto found = classes_.find(original.get());
    if (found != classes_.end()) return found->second;
    const c10::QualifiedName clean = cleanName(*original->name());
    const auto name = unit_->get_class(clean) ? unit_->mangle(clean) : clean;
    auto copy = ClassType::create(name, unit_, /*is_module=*/false);
    classes_.emplace(original.get(), copy);
    unit_->register_type(copy);
    for (size_t i = 0; i < original->numAttributes(); ++i) {
      copy->addAttribute(original->getAttributeName(i), remap(original->getAttribute(i)));
    }
    for (size_t i = 0; i < original->numConstants(); ++i) {
      copy->addConstant(original->getConstantName(i), original->getConstant(i));
    }
    for (const jit::Function* method : original->methods()) {
      auto graph = inlinedGraph(*method);
      graph->remapTypes([this](const TypePtr& type) { return remap(type); });
      define(copy, *method, graph);
    }
    return copy;
  }

  // Tensors share their memory (own_state clones what a graph writes), but are tensors of their
  // own, so that Module::to on the copy spares the original. Storages that containers and objects
  // hold are cloned, once each: they hold state rather than weights.
  IValue copyValue(const IValue& value) {
    if (value.isTensor() && value.toTensor().defined()) return copyTensor(value.toTensor());
    if (value.isList()) {
      auto copy = c10::impl::GenericList(remap(value.toList().elementType()));
      for (const IValue& element : value.toListRef()) copy.push_back(copyValue(element));
      return copy;
    }
    if (value.isGenericDict()) {
      const auto dict = value.toGenericDict();
      auto copy = c10::impl::GenericDict(remap(dict.keyType()), remap(dict.valueType()));
      for (const auto& entry : dict) {
        copy.insert(copyValue(entry.key()), copyValue(entry.value()));
      }
      return copy;
    }
    if (value.isTuple()) {
      std::vector<IValue> elements;
      for (const IValue& element : value.toTupleRef().elements()) {
        elements.push_back(copyValue(element));
      }
      const auto type = remap(value.toTupleRef().type())->expect<c10::TupleType>();
      return c10::ivalue::Tuple::createNamed(std::move(elements), type);
    }
    if (value.isObject() && !isTorchbind(*value.toObjectRef().type())) return copyObject(value);
    return value;
  }

  at::Tensor copyTensor(const at::Tensor& original) {
    const auto [found, is_new] = tensors_.emplace(original.unsafeGetTensorImpl(), at::Tensor());
    if (!is_new) return found->second;
    at::Tensor copy = original.detach();
    if (original.has_storage()) {
      c10::StorageImpl* storage = original.storage().unsafeGetStorageImpl();
      if (held_.count(storage) != 0) copy = viewOfClone(copy, storage);
    }
    found->second = copy.requires_grad_(original.requires_grad());
    return found->second;
  }

  at::Tensor viewOfClone(const at::Tensor& tensor, const c10::StorageImpl* storage) {
    at::Tensor& clone = clones_[storage];
    if (!clone.defined()) {
      const auto elements = static_cast<int64_t>(storage->nbytes() / tensor.dtype().itemsize());
      clone = tensor.as_strided({elements}, {1}, 0).clone();
    }
    return clone.as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  }

  IValue copyObject(const IValue& value) {
    const auto original = value.toObject();
    const auto found = objects_.find(original.get());
    if (found != objects_.end()) return found->second;
    const auto type = copyClass(original->type());
    auto copy = c10::ivalue::Object::create(c10::StrongTypePtr(unit_, type), type->numAttributes());
    objects_.emplace(original.get(), copy);
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      copy->setSlot(i, copyValue(original->getSlot(i)));
    }
    return copy;
  }

  std::shared_ptr<jit::CompilationUnit> unit_ = std::make_shared<jit::CompilationUnit>();
  // Keyed by identity and only looked up.
  std::unordered_map<const c10::ivalue::Object*, jit::Module> modules_;
  std::unordered_map<const c10::ivalue::Object*, c10::intrusive_ptr<c10::ivalue::Object>> objects_;
  std::unordered_map<const c10::TensorImpl*, at::Tensor> tensors_;
  std::unordered_map<const c10::StorageImpl*, at::Tensor> clones_;
  std::set<c10::StorageImpl*> held_;
  std::unordered_map<const ClassType*, ClassTypePtr> classes_;
};

}  // namespace

Program flatten(const jit::Module& original, const std::vector<std::string>& methods) {
  if (!original.type()->getForwardHooks().empty() ||
      !original.type()->getForwardPreHooks().empty()) {
    throw UserError(
        "the top module has forward hooks, which run outside of its methods. Wrap it "
        "in a module that calls it, and script that.");
  }
  TreeCopy tree(original);
  Program program;
  program.module = tree.copyModule(original, "");
  for (const std::string& name : methods) {
    tree.copyMethod(program.module, original.get_method(name).function());
    auto& function = program.module.get_method(name).function();
    program.methods.push_back({name, jit::toGraphFunction(function).graph(), nullptr});
  }
  return program;
}

}  // namespace jitquant
