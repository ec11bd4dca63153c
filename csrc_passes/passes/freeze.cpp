// freeze: weights become constants, and attributes that nothing reads go.
//
// Before:
//   %w = GetAttr[name="weight"](%conv); %wq = aten::quantize_per_channel(%w, ...)
// After:
//   %w = prim::Constant[value=<Tensor>](); %wq = aten::quantize_per_channel(%w, ...)
//
// Needs:  note_values and fold_prepack. libtorch's freeze_module does the work.
// Leaves: attributes that a method sets, and those in `preserved`; what is quantized or packed of
//         these becomes an attribute. Quantizing of what the graph computes. The marks of
//         note_values: they would keep libtorch from seeing that two ops are equal, so they travel
//         in scopes.

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/freeze_module.h>

#include <map>
#include <unordered_map>

#include "constant_folder.h"
#include "fold_constants.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

namespace {

// Freezing would make a constant of an object, and lose what its methods change.
void appendObjectPaths(const jit::Module& module, const std::string& prefix,
                       std::vector<std::string>& paths) {
  const auto type = module.type();
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    const std::string path = prefix + type->getAttributeName(i);
    const auto attribute = type->getAttribute(i)->cast<c10::ClassType>();
    if (!attribute) continue;
    if (attribute->is_module()) {
      appendObjectPaths(module.attr(type->getAttributeName(i)).toModule(), path + ".", paths);
    } else if (module._ivalue()->getSlot(i).isObject()) {
      paths.push_back(path);
    }
  }
}

constexpr const char* kValueScope = "jitquant_value_";

// Returns the kinds of the marked nodes by the index that they are marked with.
std::map<int64_t, c10::Symbol> marksToScopes(jit::Graph& graph) {
  std::map<int64_t, c10::Symbol> kinds;
  for (jit::Node* node : allNodes(graph)) {
    const auto index = mark(node, kValueMark);
    if (!index) continue;
    kinds.emplace(*index, node->kind());
    const std::string name = kValueScope + std::to_string(*index);
    node->setScope(node->scope()->push(c10::Symbol::scope(name)));
  }
  stripMarks(graph);
  return kinds;
}

void scopesToMarks(jit::Graph& graph, const std::map<int64_t, c10::Symbol>& kinds) {
  for (jit::Node* node : allNodes(graph)) {
    const std::string name = node->scope()->name().toUnqualString();
    if (name.rfind(kValueScope, 0) != 0) continue;
    const int64_t index = std::stoll(name.substr(std::string(kValueScope).size()));
    if (kinds.at(index) == node->kind()) setMark(node, kValueMark, index);
    node->setScope(node->scope()->parent());
  }
}

bool isObject(const jit::Value* value) {
  const auto type = value->type()->cast<c10::ClassType>();
  return type && !type->is_module();
}

// Reads of packed weights become inputs, and come back first in the graph. libtorch's search for
// equal nodes compares all reads of one type with each other. What a method sets stays: each read
// of it may give another object.
std::vector<std::string> readsToInputs(jit::Graph& graph, const std::set<std::string>& assigned) {
  std::vector<std::string> names;
  std::unordered_map<std::string, jit::Value*> inputs;
  const jit::Value* self = graph.inputs()[0];
  for (jit::Node* node : allNodes(graph)) {
    const bool reads_object =
        node->kind() == c10::prim::GetAttr && node->input() == self && isObject(node->output());
    if (!reads_object || assigned.count(node->s(c10::attr::name)) != 0) continue;
    const auto [found, is_new] = inputs.emplace(node->s(c10::attr::name), nullptr);
    if (is_new) {
      found->second = graph.addInput()->copyMetadata(node->output());
      names.push_back(found->first);
    }
    replaceAndDestroy(node, found->second);
  }
  return names;
}

void inputsToReads(jit::Graph& graph, const std::vector<std::string>& names) {
  const jit::WithInsertPoint guard(*graph.nodes().begin());
  const size_t first = graph.inputs().size() - names.size();
  for (size_t i = 0; i < names.size(); ++i) {
    jit::Value* input = graph.inputs()[first + i];
    if (!input->uses().empty()) {
      input->replaceAllUsesWith(graph.insertGetAttr(graph.inputs()[0], names[i]));
    }
  }
  while (graph.inputs().size() > first) graph.eraseInput(graph.inputs().size() - 1);
}

}  // namespace

void freeze(Program& program, const std::vector<std::string>& preserved) {
  std::vector<std::map<int64_t, c10::Symbol>> kinds;
  std::vector<std::vector<std::string>> reads;
  const auto assigned = assignedPaths(program);
  for (Method& method : program.methods) {
    kinds.push_back(marksToScopes(*method.graph));
    reads.push_back(readsToInputs(*method.graph, assigned));
  }
  std::vector<std::string> kept = preserved;
  for (const Method& method : program.methods) {
    if (method.name != "forward") kept.push_back(method.name);
  }
  appendObjectPaths(program.module, "", kept);
  program.module = jit::freeze_module(program.module, kept);
  for (size_t i = 0; i < program.methods.size(); ++i) {
    Method& method = program.methods[i];
    method.graph = jit::toGraphFunction(program.module.get_method(method.name).function()).graph();
    inputsToReads(*method.graph, reads[i]);
    renewKeptLists(*method.graph);
    scopesToMarks(*method.graph, kinds[i]);
    method.plan = nullptr;
  }
  ownState(program);  // the graphs are new, and their reads unmarked
  ConstantFolder folder(program);
  for (Method& method : program.methods) {
    folder.foldPrepacks(method);
    folder.foldQuantizes(method);
  }
}

}  // namespace jitquant
