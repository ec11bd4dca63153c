// keep_state: a prepared model remembers the state that its methods change, and convert goes back
// to it.
//
// Before:
//   self.h = <Tensor>, which forward sets
// After:
//   self.h = <Tensor>
//   self.jitquant_initial_paths = ["h"]; self.jitquant_initial_state = (<copy of h>,)
//
// Needs:  own_state, whose marks tell what changes. restoreState needs flatten, which makes the
//         copies its own.
// Leaves: the graphs. A model without state gets no attributes.

#include <set>

#include "ir_util.h"
#include "passes/passes.h"
#include "value_copy.h"

namespace jitquant {

using at::IValue;
using jit::Node;

namespace {

constexpr const char* kPaths = "jitquant_initial_paths";
constexpr const char* kState = "jitquant_initial_state";

bool isContainer(const IValue& value) {
  return value.isList() || value.isGenericDict() ||
         (value.isObject() && !value.isModule() && !value.isCustomClass());
}

// The attribute of a module that `path` leads to or, inside of an object, through.
std::string moduleAttribute(const jit::Module& root, const std::string& path) {
  jit::Module owner = root;
  for (size_t dot = path.find('.'), begin = 0; dot != std::string::npos;
       begin = dot + 1, dot = path.find('.', begin)) {
    const IValue value = owner.attr(path.substr(begin, dot - begin));
    if (!value.isModule()) return path.substr(0, dot);
    owner = value.toModule();
  }
  return path;
}

// Sorted paths of what the methods set, write in place, or read out of containers and objects.
std::set<std::string> statePaths(Program& program) {
  std::set<std::string> paths;
  std::set<const c10::StorageImpl*> written;  // looked up only
  const auto add = [&](const std::string& path) {
    paths.insert(moduleAttribute(program.module, path));
  };
  for (const std::string& path : assignedPaths(program)) add(path);
  for (Method& method : program.methods) {
    for (const Node* node : allNodes(*method.graph)) {
      if (node->kind() != c10::prim::GetAttr) continue;
      const auto path = attributePath(node->output());
      if (!path) continue;
      const std::string attribute = moduleAttribute(program.module, *path);
      const auto [owner, name] = ownerOf(program.module, attribute);
      const IValue value = owner.attr(name);
      if (isContainer(value)) paths.insert(attribute);
      const bool is_written = value.isTensor() && mark(node, kMutableMark);
      if (is_written && value.toTensor().defined() && value.toTensor().has_storage()) {
        written.insert(value.toTensor().storage().unsafeGetStorageImpl());
      }
    }
  }
  for (const auto& attribute : program.module.named_attributes(/*recurse=*/true)) {
    if (!attribute.value.isTensor() || !attribute.value.toTensor().defined()) continue;
    const at::Tensor tensor = attribute.value.toTensor();
    if (tensor.has_storage() && written.count(tensor.storage().unsafeGetStorageImpl()) != 0) {
      paths.insert(attribute.name);
    }
  }
  return paths;
}

}  // namespace

void keepState(Program& program) {
  c10::List<std::string> paths;
  std::vector<IValue> values;
  std::vector<c10::TypePtr> types;
  ValueCopy copy(
      program.module._ivalue()->compilation_unit(), [](const c10::TypePtr& type) { return type; },
      [](const c10::StorageImpl*) { return true; });
  for (const std::string& path : statePaths(program)) {
    const auto [owner, name] = ownerOf(program.module, path);
    paths.push_back(path);
    values.push_back(copy.copy(owner.attr(name)));
    types.push_back(owner.type()->getAttribute(name));
  }
  if (paths.empty()) return;
  program.module.register_attribute(kPaths, c10::ListType::ofStrings(), paths);
  program.module.register_attribute(kState, c10::TupleType::create(types),
                                    c10::ivalue::Tuple::create(std::move(values)));
}

void restoreState(Program& program) {
  if (!program.module.hasattr(kPaths)) return;
  const IValue paths = program.module.attr(kPaths);
  const IValue state = program.module.attr(kState);
  for (size_t i = 0; i < paths.toListRef().size(); ++i) {
    const auto [owner, name] = ownerOf(program.module, paths.toListRef()[i].toStringRef());
    owner._ivalue()->setAttr(name, state.toTupleRef().elements()[i]);
  }
  for (const char* name : {kState, kPaths}) {
    program.module._ivalue()->unsafeRemoveAttr(name);
    program.module.type()->unsafeRemoveAttribute(name);
  }
}

}  // namespace jitquant
