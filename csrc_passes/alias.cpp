#include "alias.h"

#include "ir_util.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

void holdStorages(const at::IValue& value, std::set<c10::StorageImpl*>& held) {
  if (value.isTensor() && value.toTensor().defined() && value.toTensor().has_storage()) {
    held.insert(value.toTensor().storage().unsafeGetStorageImpl());
  } else if (value.isList()) {
    for (const at::IValue& element : value.toListRef()) holdStorages(element, held);
  } else if (value.isTuple()) {
    for (const at::IValue& element : value.toTupleRef().elements()) holdStorages(element, held);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) holdStorages(entry.value(), held);
  } else if (value.isObject() && !value.isCustomClass()) {
    for (const at::IValue& slot : value.toObjectRef().slots()) holdStorages(slot, held);
  }
}

// Whether a value of this type is, or leads to, memory of tensors.
bool holdsTensors(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::ComplexType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::NumberType:
    case c10::TypeKind::StringType:
    case c10::TypeKind::NoneType:
    case c10::TypeKind::DeviceObjType:
      return false;
    case c10::TypeKind::ListType:
    case c10::TypeKind::TupleType:
    case c10::TypeKind::DictType:
    case c10::TypeKind::OptionalType: {
      const auto contained = type->containedTypes();
      return std::any_of(contained.begin(), contained.end(), holdsTensors);
    }
    default:
      return true;
  }
}

bool isContainer(const Value* value) { return holdsTensors(value->type()) && !isTensor(value); }

// Instructions that only build, open or cast.
bool onlyHandsOn(const Node* node) {
  static constexpr c10::Symbol kinds[] = {
      c10::prim::ListConstruct,  c10::prim::TupleConstruct, c10::prim::DictConstruct,
      c10::prim::ListUnpack,     c10::prim::TupleUnpack,    c10::prim::TupleIndex,
      c10::prim::TupleSlice,     c10::prim::CreateObject,   c10::prim::Uninitialized,
      c10::prim::unchecked_cast, c10::prim::Constant,       c10::prim::RaiseException,
      c10::prim::isinstance};
  return std::find(std::begin(kinds), std::end(kinds), node->kind()) != std::end(kinds);
}

bool writesTensors(const c10::Argument& argument) {
  const c10::AliasInfo* alias = argument.alias_info();
  if (alias == nullptr) return false;
  // The elements, as in Tensor(a!)[]; a list itself, as in t[](a!), is no memory of tensors.
  const auto& elements = alias->containedTypes();
  const bool writes_elements = std::any_of(elements.begin(), elements.end(),
                                           [](const auto& info) { return info.isWrite(); });
  return writes_elements ||
         (alias->isWrite() && argument.type()->kind() == c10::TypeKind::TensorType);
}

bool isModule(const Value* value) {
  const auto type = value->type()->cast<c10::ClassType>();
  return type && type->is_module();
}

// The outermost loop around a node, or null.
const Node* outermostLoop(const Node* node) {
  const Node* loop = nullptr;
  for (const jit::Block* block = node->owningBlock(); block->owningNode() != nullptr;
       block = block->owningNode()->owningBlock()) {
    if (block->owningNode()->kind() == c10::prim::Loop) loop = block->owningNode();
  }
  return loop;
}

}  // namespace

Aliases::Aliases(jit::Graph& graph, const jit::Module& module) : module_(module) {
  const std::vector<Node*> nodes = allNodes(graph);
  for (size_t i = 0; i < nodes.size(); ++i) position_[nodes[i]] = i;
  // Callers may pass one tensor twice.
  const auto inputs = graph.inputs().slice(1);
  joinAll({inputs.begin(), inputs.end()});
  for (const Node* node : nodes) visit(node);
  for (const auto& [written, writer] : writes_) writers_[find(written)].push_back(writer);
}

bool Aliases::isWritten(const Value* value) const { return !writersOf(value).empty(); }

const Node* Aliases::laterWriterOf(const Value* value) const {
  const std::vector<const Node*> writers = writersOf(value);
  const auto found = std::find_if(writers.begin(), writers.end(),
                                  [&](const Node* writer) { return runsAfter(writer, value); });
  return found == writers.end() ? nullptr : *found;
}

std::vector<const Value*> Aliases::aliasesOf(const Value* value) const {
  const auto member = values_.find(value);
  if (member == values_.end()) return {value};
  std::vector<const Value*> aliases;
  std::copy_if(in_order_.begin(), in_order_.end(), std::back_inserter(aliases),
               [&](const Value* other) { return find(values_.at(other)) == find(member->second); });
  return aliases;
}

std::vector<const Node*> Aliases::writersOf(const Value* value) const {
  const auto member = values_.find(value);
  if (member == values_.end()) return {};
  const auto found = writers_.find(find(member->second));
  return found == writers_.end() ? std::vector<const Node*>() : found->second;
}

bool Aliases::runsAfter(const Node* writer, const Value* value) const {
  const Node* producer = value->node();
  const Node* loop = outermostLoop(writer);
  if (loop != nullptr && loop == outermostLoop(producer)) return true;
  // The input of a block is there when the block's node starts; that of the graph before all.
  if (producer->kind() == c10::prim::Param) producer = producer->owningBlock()->owningNode();
  return producer == nullptr || position_.at(writer) > position_.at(producer);
}

Aliases::Class Aliases::newClass() {
  parent_.push_back(parent_.size());
  return parent_.back();
}

Aliases::Class Aliases::find(Class member) const {
  while (parent_[member] != member) member = parent_[member];
  return member;
}

Aliases::Class Aliases::classOf(const Value* value) {
  const auto [found, is_new] = values_.emplace(value, 0);
  if (is_new) {
    found->second = newClass();
    in_order_.push_back(value);
  }
  return found->second;
}

void Aliases::joinAll(const std::vector<const Value*>& values) {
  const Value* first = nullptr;
  for (const Value* value : values) {
    if (!holdsTensors(value->type()) || isModule(value)) continue;
    if (first == nullptr) first = value;
    join(classOf(value), classOf(first));
  }
}

void Aliases::visit(const Node* node) {
  if (node->kind() == c10::prim::GetAttr) {
    visitRead(node);
  } else if (node->kind() == c10::prim::SetAttr) {
    visitWrite(node);
  } else if (node->kind() == c10::prim::If || node->kind() == c10::prim::Loop) {
    visitBlocks(node);
  } else if (const c10::FunctionSchema* schema = node->maybeSchema()) {
    visitOp(node, *schema);
  } else {
    std::vector<const Value*> values(node->inputs().begin(), node->inputs().end());
    values.insert(values.end(), node->outputs().begin(), node->outputs().end());
    joinAll(values);
    if (onlyHandsOn(node)) return;
    for (const Value* value : values) write(value, node);
  }
}

void Aliases::visitRead(const Node* node) {
  const Value* value = node->output();
  if (isModule(value)) return;
  if (!isModule(node->input())) joinAll({node->input(), value});  // an object and its attribute
  const auto path = attributePath(value);
  if (!path) return;
  const auto [attribute, is_new] = attributes_.emplace(*path, 0);
  if (is_new) attribute->second = newClass();
  join(classOf(value), attribute->second);
  const auto [owner, name] = ownerOf(module_, *path);
  if (!owner.hasattr(name)) return;
  std::set<c10::StorageImpl*> held;
  holdStorages(owner.attr(name), held);
  for (const c10::StorageImpl* storage : held) {
    const auto [found, is_first] = storages_.emplace(storage, 0);
    if (is_first) found->second = newClass();
    join(classOf(value), found->second);
  }
}

void Aliases::visitWrite(const Node* node) {
  const Value* object = node->input(0);
  if (!isModule(object)) return joinAll({object, node->input(1)});
  if (!holdsTensors(node->input(1)->type())) return;
  const std::string prefix = attributePath(object).value_or("?");
  const std::string path = (prefix.empty() ? "" : prefix + ".") + node->s(c10::attr::name);
  const auto [attribute, is_new] = attributes_.emplace(path, 0);
  if (is_new) attribute->second = newClass();
  join(classOf(node->input(1)), attribute->second);
}

void Aliases::visitBlocks(const Node* node) {
  const bool loops = node->kind() == c10::prim::Loop;
  for (size_t i = 0; i < node->outputs().size(); ++i) {
    std::vector<const Value*> values{node->output(i)};
    if (loops) values.push_back(node->input(i + 2));  // after trip count and condition
    for (const jit::Block* block : node->blocks()) {
      values.push_back(block->outputs()[loops ? i + 1 : i]);
      if (loops) values.push_back(block->inputs()[i + 1]);
    }
    joinAll(values);
  }
}

void Aliases::visitOp(const Node* node, const c10::FunctionSchema& schema) {
  const auto infoOf = [](const std::vector<c10::Argument>& arguments, size_t i) {
    return i < arguments.size() ? arguments[i].alias_info() : nullptr;
  };
  // Schemas do not say what goes into a list, dict or tuple, and what comes out of one is "*".
  bool all = mayReturnItsInput(node) || node->hasSideEffects();
  for (size_t i = 0; i < node->outputs().size(); ++i) {
    const c10::AliasInfo* info = infoOf(schema.returns(), i);
    all = all || isContainer(node->output(i)) || (info != nullptr && info->isWildcardAfter());
  }
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    const c10::AliasInfo* info = infoOf(schema.arguments(), i);
    if (info == nullptr) continue;
    all = all || info->isWildcardAfter() || (info->isWrite() && isContainer(node->input(i)));
  }
  std::vector<const Value*> involved;
  for (size_t i = 0; i < node->outputs().size(); ++i) {
    if (all || infoOf(schema.returns(), i) != nullptr) involved.push_back(node->output(i));
  }
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    if (all || infoOf(schema.arguments(), i) != nullptr) involved.push_back(node->input(i));
    const bool is_written = i < schema.arguments().size() && writesTensors(schema.arguments()[i]);
    if (is_written || node->hasSideEffects()) write(node->input(i), node);
  }
  joinAll(involved);
}

void Aliases::write(const Value* value, const Node* writer) {
  if (holdsTensors(value->type()) && !isModule(value)) writes_.emplace_back(classOf(value), writer);
}

bool mayWriteTensors(const Node* node) {
  const auto kind = node->kind();
  if (kind == c10::prim::GetAttr || kind == c10::prim::SetAttr || kind == c10::prim::If ||
      kind == c10::prim::Loop) {
    return false;
  }
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema == nullptr) return !onlyHandsOn(node);
  const auto& arguments = schema->arguments();
  return node->hasSideEffects() || std::any_of(arguments.begin(), arguments.end(), writesTensors);
}

bool isDropout(const Node* node) {
  return node->kind() == c10::aten::dropout || node->kind() == c10::aten::feature_dropout ||
         node->kind() == c10::aten::alpha_dropout ||
         node->kind() == c10::aten::feature_alpha_dropout;
}

bool mayReturnItsInput(const Node* node) {
  return isDropout(node) || node->kind() == c10::aten::type_as ||
         node->kind() == c10::aten::atleast_1d || node->kind() == c10::aten::atleast_2d ||
         node->kind() == c10::aten::atleast_3d || node->kind() == c10::aten::broadcast_tensors ||
         node->kind() == c10::aten::meshgrid;
}

bool makesFreshTensor(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema != nullptr && node->outputs().size() == 1 && isTensor(node->output()) &&
         schema->returns().size() == 1 && schema->returns()[0].alias_info() == nullptr &&
         !mayReturnItsInput(node);
}

c10::StorageImpl* storageOf(const Node* node, const jit::Module& module) {
  if (node->kind() != c10::prim::GetAttr) return nullptr;
  const auto path = attributePath(node->output());
  if (!path) return nullptr;
  const auto [owner, name] = ownerOf(module, *path);
  if (!owner.hasattr(name) || !owner.attr(name).isTensor()) return nullptr;
  const at::Tensor tensor = owner.attr(name).toTensor();
  return tensor.defined() && tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl()
                                                  : nullptr;
}

std::set<c10::StorageImpl*> heldStorages(const jit::Module& module) {
  std::set<c10::StorageImpl*> held;
  for (const jit::Module& owner : module.modules()) {
    for (const at::IValue& slot : owner._ivalue()->slots()) {
      if (!slot.isTensor() && !slot.isModule()) holdStorages(slot, held);
    }
  }
  return held;
}

}  // namespace jitquant
