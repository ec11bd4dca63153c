#include "ir_util.h"

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <sstream>

#include "fused_float.h"

namespace jitquant {

using at::IValue;
using jit::Node;
using jit::Value;

namespace {

void appendNodes(jit::Block* block, std::vector<Node*>& nodes) {
  for (Node* node : block->nodes()) {
    nodes.push_back(node);
    for (jit::Block* inner : node->blocks()) appendNodes(inner, nodes);
  }
}

// Tracing keeps the Python stack as text, innermost first: "/home/me/net.py(17): forward".
std::string tracedLine(const jit::SourceRange& range) {
  if (!range.source()) return "";
  std::istringstream stack(range.source()->text_str().str());
  for (std::string frame; std::getline(stack, frame);) {
    const size_t end = frame.rfind("): ");
    const size_t open = end == std::string::npos ? end : frame.rfind('(', end);
    if (open == std::string::npos || isTorchFile(frame)) continue;
    const std::string file = frame.substr(0, open);
    return file.substr(file.find_last_of('/') + 1) + ":" + frame.substr(open + 1, end - open - 1);
  }
  return "";
}

}  // namespace

bool isTorchFile(const std::string& file) {
  return file.find("/torch/") != std::string::npos || file.rfind("torch/", 0) == 0 ||
         file.rfind('<', 0) == 0;
}

std::vector<Node*> allNodes(jit::Graph& graph) {
  std::vector<Node*> nodes;
  appendNodes(graph.block(), nodes);
  return nodes;
}

void replaceAndDestroy(Node* node, Value* value) {
  node->output()->replaceAllUsesWith(value);
  node->destroy();
}

std::optional<std::string> attributePath(const Value* value) {
  std::vector<std::string> names;
  while (value->node()->kind() == c10::prim::GetAttr) {
    names.push_back(value->node()->s(c10::attr::name));
    value = value->node()->input();
  }
  const jit::Graph* graph = value->owningGraph();
  if (graph->inputs().empty() || value != graph->inputs()[0]) return std::nullopt;
  const auto self = value->type()->cast<c10::ClassType>();
  if (!self || !self->is_module()) return std::nullopt;
  std::string path;
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    path += (path.empty() ? "" : ".") + *name;
  }
  return path;
}

std::pair<jit::Module, std::string> ownerOf(const jit::Module& root, const std::string& path) {
  jit::Module owner = root;
  size_t begin = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.', begin)) {
    owner = owner.attr(path.substr(begin, dot - begin)).toModule();
    begin = dot + 1;
  }
  return {owner, path.substr(begin)};
}

std::optional<IValue> constantOrAttribute(const Value* value, const jit::Module& module) {
  if (auto constant = jit::toIValue(value)) return constant;
  const bool is_read = value->node()->kind() == c10::prim::GetAttr;
  if (!is_read || mark(value->node(), kMutableMark)) return std::nullopt;
  const auto path = attributePath(value);
  if (!path) return std::nullopt;
  const auto [owner, name] = ownerOf(module, *path);
  if (!owner.hasattr(name)) return std::nullopt;
  return owner.attr(name);
}

std::optional<at::Tensor> constantTensor(const Value* value, const jit::Module& module) {
  const auto constant = constantOrAttribute(value, module);
  if (!constant || !constant->isTensor()) return std::nullopt;
  return constant->toTensor();
}

std::optional<double> constantNumber(const Value* value) {
  const auto constant = jit::toIValue(value);
  if (!constant) return std::nullopt;
  if (constant->isDouble()) return constant->toDouble();
  if (constant->isInt()) return static_cast<double>(constant->toInt());
  if (constant->isBool()) return constant->toBool() ? 1.0 : 0.0;
  if (constant->isTensor() && constant->toTensor().dim() == 0 &&
      !constant->toTensor().is_complex()) {
    return constant->toTensor().to(at::kDouble).item<double>();
  }
  return std::nullopt;
}

std::optional<std::vector<int64_t>> constantInts(const Value* value) {
  if (const auto constant = jit::toIValue(value)) {
    if (constant->isIntList()) return constant->toIntVector();
    if (constant->isInt()) return std::vector<int64_t>{constant->toInt()};
    return std::nullopt;
  }
  if (value->node()->kind() != c10::prim::ListConstruct || !isOnlyRead(value)) return std::nullopt;
  std::vector<int64_t> result;
  for (const Value* element : value->node()->inputs()) {
    const auto constant = jit::toIValue(element);
    if (!constant || !constant->isInt()) return std::nullopt;
    result.push_back(constant->toInt());
  }
  return result;
}

bool isOnlyRead(const Value* list) {
  return std::all_of(list->uses().begin(), list->uses().end(), [](const jit::Use& use) {
    if (use.user->kind() == c10::prim::ListUnpack) return true;
    const c10::FunctionSchema* schema = use.user->maybeSchema();
    if (schema == nullptr || use.offset >= schema->arguments().size()) return false;
    const c10::AliasInfo* alias = schema->arguments()[use.offset].alias_info();
    return alias == nullptr || !alias->isWrite();
  });
}

bool isNone(const Value* value) { return value->mustBeNone(); }

Value* insertAttributeRead(jit::Graph& graph, const std::string& path, const jit::Module& root,
                           Node* before) {
  const jit::WithInsertPoint guard(before);
  Value* value = graph.inputs()[0];
  jit::Module owner = root;
  size_t begin = 0;
  while (true) {
    const size_t dot = path.find('.', begin);
    const std::string name = path.substr(begin, dot - begin);
    value = graph.insertGetAttr(value, name);
    if (dot == std::string::npos) return value;
    owner = owner.attr(name).toModule();
    value->setType(owner.type());
    begin = dot + 1;
  }
}

void setTensorAttribute(const jit::Module& root, const std::string& path, const at::Tensor& value) {
  auto [owner, name] = ownerOf(root, path);
  if (owner.hasattr(name) &&
      !owner.type()->getAttribute(name)->isSubtypeOf(*c10::TensorType::get())) {
    // The tree is ours, and no other instance has this type.
    owner._ivalue()->unsafeRemoveAttr(name);
    owner.type()->unsafeRemoveAttribute(name);
  }
  if (owner.hasattr(name)) {
    owner.setattr(name, value);
  } else {
    owner.register_parameter(name, value, /*is_buffer=*/false);
  }
}

std::string freeAttributeName(const jit::Module& module, const std::string& wish) {
  std::string name = wish;
  for (int i = 1; module.hasattr(name); ++i) name = wish + "_" + std::to_string(i);
  return name;
}

std::string modulePath(const Node* node) {
  // Scopes are root / module path / op as written, see setModulePath and noteOrigin.
  jit::ScopePtr scope = const_cast<Node*>(node)->scope();
  if (scope && scope->name().is_aten()) scope = scope->parent();
  return !scope || scope->isBlank() || scope->isRoot() ? "" : scope->name().toUnqualString();
}

std::string moduleClass(const Node* node, const jit::Module& root) {
  const std::string path = modulePath(node);
  jit::Module module = root;
  if (!path.empty()) {
    const auto [owner, name] = ownerOf(root, path);
    if (!owner.hasattr(name) || !owner.attr(name).isModule()) return "";
    module = owner.attr(name).toModule();
  }
  return module.type()->name() ? module.type()->name()->qualifiedName() : "";
}

void setModulePath(Node* node, const std::string& path) {
  auto root = c10::make_intrusive<jit::Scope>();
  node->setScope(path.empty() ? root : root->push(c10::Symbol::scope(path)));
}

void noteOrigin(Node* node) {
  const auto path = c10::Symbol::scope(modulePath(node));
  node->setScope(c10::make_intrusive<jit::Scope>()->push(path)->push(node->kind()));
}

std::string writtenKind(const Node* node) {
  const jit::ScopePtr scope = const_cast<Node*>(node)->scope();
  const bool is_noted = scope && scope->name().is_aten();
  return (is_noted ? scope->name() : node->kind()).toQualString();
}

bool isLeftFloat(const Node* node) {
  const int64_t qconfig = mark(node, kQConfigMark).value_or(0);
  return qconfig < 0 && qconfig != kFusedFloat;
}

std::string sourceLine(const Node* node) {
  jit::SourceRange range = node->sourceRange();
  if (const auto original = range.findSourceRangeThatGenerated()) range = *original;
  const auto place = range.file_line_col();
  if (!place) return tracedLine(range);
  const auto& [file, line, column] = *place;
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(line);
}

std::string describe(const Node* node) {
  const std::string path = modulePath(node);
  const std::string source = sourceLine(node);
  std::string text = node->kind().toQualString();
  text += path.empty() ? " in the top module" : " in '" + path + "'";
  if (!source.empty()) text += " (" + source + ")";
  return text;
}

void setMark(Node* node, const char* name, int64_t value) {
  node->i_(c10::Symbol::attr(name), value);
}

std::optional<int64_t> mark(const Node* node, const char* name) {
  const auto symbol = c10::Symbol::attr(name);
  if (!node->hasAttribute(symbol)) return std::nullopt;
  return node->i(symbol);
}

void stripMarks(jit::Graph& graph) {
  for (Node* node : allNodes(graph)) {
    for (const char* name : kMarks) {
      const auto symbol = c10::Symbol::attr(name);
      if (node->hasAttribute(symbol)) node->removeAttribute(symbol);
    }
  }
}

Node* copyOrigin(Node* to, const Node* from) {
  to->copyMetadata(const_cast<Node*>(from));
  for (const char* name : kMarks) {
    if (const auto value = mark(from, name)) setMark(to, name, *value);
  }
  return to;
}

Value* insertOp(Node* before, c10::Symbol kind, at::ArrayRef<Value*> inputs) {
  Node* node = before->owningGraph()->create(kind, inputs);
  return copyOrigin(node, before)->insertBefore(before)->output();
}

Node* replaceWithOp(Node* old, c10::Symbol kind, at::ArrayRef<Value*> inputs) {
  Value* value = insertOp(old, kind, inputs);
  value->copyMetadata(old->output());
  replaceAndDestroy(old, value);
  return value->node();
}

namespace {

bool isObjectType(const c10::TypePtr& type) {
  const auto object = type->cast<c10::ClassType>();
  return object && !object->is_module();
}

// Calls `visit` with the path and type of each object that `type` holds, also inside of others.
void visitObjects(const c10::ClassTypePtr& type, const std::string& prefix,
                  const std::function<void(const std::string&, const c10::ClassTypePtr&)>& visit) {
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    const auto inner = type->getAttribute(i)->cast<c10::ClassType>();
    if (!inner) continue;
    const std::string path = prefix + type->getAttributeName(i);
    if (!inner->is_module()) visit(path, inner);
    visitObjects(inner, path + ".", visit);
  }
}

}  // namespace

std::set<std::string> assignedPaths(Program& program) {
  std::set<std::string> paths;
  // Of objects a write may be through another name: it counts for all of the type.
  std::set<std::pair<std::string, std::string>> written_in_objects;
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (node->kind() != c10::prim::SetAttr) continue;
      const Value* changed = node->input(0);
      const std::string& name = node->s(c10::attr::name);
      if (const auto owner = attributePath(changed)) {
        paths.insert(owner->empty() ? name : *owner + "." + name);
      }
      if (isObjectType(changed->type()) && changed->node()->kind() != c10::prim::CreateObject) {
        written_in_objects.emplace(changed->type()->repr_str(), name);
      }
    }
  }
  visitObjects(
      program.module.type(), "", [&](const std::string& path, const c10::ClassTypePtr& type) {
        const bool is_new = paths.count(path) != 0;  // or what holds it is, which came before
        for (size_t i = 0; i < type->numAttributes(); ++i) {
          const std::string& name = type->getAttributeName(i);
          if (is_new || written_in_objects.count({type->repr_str(), name}) != 0) {
            paths.insert(path + "." + name);
          }
        }
      });
  return paths;
}

bool isConv(const Node* node) {
  return node->kind() == c10::aten::conv1d || node->kind() == c10::aten::conv2d ||
         node->kind() == c10::aten::conv3d;
}

bool isConvTranspose(const Node* node) {
  return node->kind() == c10::aten::conv_transpose1d ||
         node->kind() == c10::aten::conv_transpose2d || node->kind() == c10::aten::conv_transpose3d;
}

bool isLayer(const Node* node) {
  return isConv(node) || isConvTranspose(node) || node->kind() == c10::aten::linear;
}

bool isTensor(const Value* value) { return value->type()->isSubtypeOf(*c10::TensorType::get()); }

bool hasOneUse(const Value* value) { return value->uses().size() == 1; }

Value* insertConstantBefore(Node* before, const IValue& value) {
  const jit::WithInsertPoint guard(before);
  return before->owningGraph()->insertConstant(value, std::nullopt, before->scope());
}

bool isObserverName(const std::string& name) { return name.rfind(kObserverPrefix, 0) == 0; }

std::optional<std::string> observerCall(const Node* node) {
  if (node->kind() != c10::prim::CallMethod) return std::nullopt;
  const Node* receiver = node->input(0)->node();
  if (receiver->kind() != c10::prim::GetAttr) return std::nullopt;
  const std::string& name = receiver->s(c10::attr::name);
  if (!isObserverName(name)) return std::nullopt;
  return name;
}

}  // namespace jitquant
