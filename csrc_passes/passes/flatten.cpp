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
//
// A submodule typed as an interface gets the type of the module that is there, and a fork runs
// where it stands.

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/function_impl.h>

#include <algorithm>

#include "alias.h"
#include "attributes.h"
#include "error.h"
#include "inline_calls.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "value_copy.h"

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

// Dots separate the modules of a path, and torch.ao's converted models have them in names of
// attributes.
std::string nameWithoutDots(std::string name, const jit::Module& original,
                            const jit::Module& copy) {
  if (name.find('.') == std::string::npos) return name;
  std::replace(name.begin(), name.end(), '.', '_');
  while (original.hasattr(name) || copy.hasattr(name)) name += '_';
  return name;
}

class TreeCopy {
 public:
  // Tensors share their memory (own_state clones what a graph writes), but are tensors of their
  // own, so that Module::to on the copy spares the original. Storages that containers and objects
  // hold are cloned: they hold state rather than weights.
  explicit TreeCopy(const jit::Module& root)
      : root_(root),
        values_(
            unit_, [this](const TypePtr& type) { return remap(type); },
            [held = heldStorages(root)](c10::StorageImpl* storage) {
              return held.count(storage) != 0;
            }) {}

  jit::Module copyModule(const jit::Module& original) {
    const auto found = modules_.find(original._ivalue().get());
    if (found != modules_.end()) return found->second;
    const ClassTypePtr type = original.type();
    jit::Module copy(cleanName(*type->name()), unit_, /*shouldMangle=*/true);
    modules_.emplace(original._ivalue().get(), copy);
    for (size_t i = 0; i < type->numConstants(); ++i) {
      copy.type()->addConstant(type->getConstantName(i), type->getConstant(i));
    }
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      const std::string& original_name = type->getAttributeName(i);
      const std::string name = nameWithoutDots(original_name, original, copy);
      if (name != original_name) renamed_[copy.type().get()][original_name] = name;
      const IValue& value = original._ivalue()->getSlot(i);
      if (isObserverName(name)) {
        addModule(copy, name, value.toModule());
      } else if (value.isModule()) {
        // The module that is there, also where the attribute is typed as an interface.
        addModule(copy, name, copyModule(value.toModule()));
      } else if (type->getAttribute(i)->kind() == c10::TypeKind::InterfaceType) {
        throw UserError("the attribute '" + original_name + "' is typed as the interface " +
                        type->getAttribute(i)->annotation_str() +
                        " and holds an object that is no module. Give it a concrete type.");
      } else {
        const TypePtr mapped = remap(type->getAttribute(i));
        const size_t slot =
            copy.type()->addAttribute(name, mapped, type->is_parameter(i), type->is_buffer(i));
        copy._ivalue()->setSlot(slot, values_.copy(value));
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
    auto graph = inlinedGraph(method, &root_);
    graph->remapTypes([this](const TypePtr& type) { return remap(type); });
    retype(graph->block(), graph->inputs()[0], copy);
    define(copy.type(), method, graph);
  }

 private:
  // Gives the chains of submodule reads the types and names of the new tree.
  void retype(Block* block, Value* self, const jit::Module& copy) const {
    self->setType(copy.type());
    for (Node* node : block->nodes()) {
      for (Block* inner : node->blocks()) retype(inner, self, copy);
      const bool is_read = node->kind() == c10::prim::GetAttr;
      if (!is_read && node->kind() != c10::prim::SetAttr) continue;
      const auto owner = node->input(0)->type()->cast<ClassType>();
      if (!owner || !owner->is_module()) continue;
      const std::string name = newName(*owner, node->s(c10::attr::name));
      node->s_(c10::attr::name, name);
      if (is_read) node->output()->setType(owner->getAttribute(name));
    }
  }

  std::string newName(const ClassType& owner, const std::string& name) const {
    const auto names = renamed_.find(&owner);
    if (names == renamed_.end() || names->second.count(name) == 0) return name;
    return names->second.at(name);
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
      auto graph = inlinedGraph(*method, nullptr);
      graph->remapTypes([this](const TypePtr& type) { return remap(type); });
      define(copy, *method, graph);
    }
    return copy;
  }

  const jit::Module& root_;
  std::shared_ptr<jit::CompilationUnit> unit_ = std::make_shared<jit::CompilationUnit>();
  // Keyed by identity and only looked up.
  std::unordered_map<const c10::ivalue::Object*, jit::Module> modules_;
  std::unordered_map<const ClassType*, ClassTypePtr> classes_;
  // Of a new module's type: old names of attributes to new ones.
  std::unordered_map<const ClassType*, std::map<std::string, std::string>> renamed_;
  ValueCopy values_;
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
  program.module = tree.copyModule(original);
  for (const std::string& name : methods) {
    tree.copyMethod(program.module, original.get_method(name).function());
    auto& function = program.module.get_method(name).function();
    program.methods.push_back({name, jit::toGraphFunction(function).graph(), nullptr});
  }
  return program;
}

}  // namespace jitquant
