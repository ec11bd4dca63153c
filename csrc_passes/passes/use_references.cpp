// use_references: each int8 op becomes what it computes, in stock float and integer ops.
//
// Before:
//   %wq = aten::quantize_per_channel(%w, ...); %packed = quantized::conv2d_prepack(%wq, %b, ...)
//   %y = quantized::conv2d_relu(%x, %packed, s, z)
// After:
//   %w8 = GetAttr[name="weight_int8"](%conv1); ... the body of conv2d in targets/reference.cpp ...
//   %y = aten::_make_per_tensor_quantized_tensor(%steps, s, z)
//
// Needs:  restore_layout, which ends what decides on int8 ops. Weights are not frozen, so that they
//         can be read by name: float, and beside them as integers with scales.
// Leaves: int8 ops that only move values.

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <stdexcept>

#include "dead_code.h"
#include "evaluate.h"
#include "ir_util.h"
#include "op_table.h"
#include "passes/passes.h"
#include "targets/reference.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Referrer {
 public:
  explicit Referrer(Program& program) : program_(program), evaluator_(program.module) {}

  void replace(Node* node) {
    const Node* prepack = prepackOf(node);
    const Kernels kernels =
        prepack == nullptr ? currentKernels() : kernelsOf(*evaluator_.evaluate(prepack->output()));
    for (const Reference& reference : references()) {
      if (reference.op != node->kind().toQualString()) continue;
      const auto body = bodyOf(kernels, reference, node, prepack);
      if (body == nullptr) continue;
      insert(node, *body, argumentsOf(node, prepack));
      return;
    }
    const OpRow* row = findRow(node);
    const bool moves = row != nullptr && row->role == Role::kSharesInput;
    if (!moves) {
      throw std::logic_error(std::string(node->kind().toQualString()) + " has no reference");
    }
  }

 private:
  const Node* prepackOf(const Node* node) const {
    for (const Value* input : node->inputs()) {
      if (program_.target->isPrepack(input->node())) return input->node();
    }
    return nullptr;
  }

  // The function with what is known of its arguments put in, or null if it takes others.
  std::shared_ptr<jit::Graph> bodyOf(Kernels kernels, const Reference& reference, const Node* node,
                                     const Node* prepack) {
    jit::Function& function = unit(kernels).get_function(reference.function);
    auto graph = jit::toGraphFunction(function).graph()->copy();
    size_t given = node->inputs().size();
    if (prepack != nullptr) given += prepack->inputs().size() + 1;
    const bool has_clamps = function.getSchema().arguments().back().name() == "clamps";
    if (graph->inputs().size() != given + (has_clamps ? 1 : 0)) return nullptr;
    jit::Inline(*graph);
    if (has_clamps) putIn(*graph, given, reference.clamps);
    if (prepack != nullptr && isNone(prepack->input(1))) {
      putIn(*graph, *function.getSchema().argumentIndexWithName("bias"), at::IValue());
    }
    jit::ConstantPropagation(graph);
    if (has_clamps) graph->eraseInput(given);
    return graph;
  }

  static void putIn(jit::Graph& graph, size_t input, const at::IValue& value) {
    const jit::WithInsertPoint guard(*graph.nodes().begin());
    graph.inputs()[input]->replaceAllUsesWith(graph.insertConstant(value));
  }

  jit::CompilationUnit& unit(Kernels kernels) {
    auto& unit = units_[kernels];
    if (unit == nullptr) unit = referenceUnit(kernels);
    return *unit;
  }

  std::vector<Value*> argumentsOf(Node* node, const Node* prepack) {
    std::vector<Value*> arguments;
    for (Value* input : node->inputs()) {
      if (prepack == nullptr || input != prepack->output()) {
        arguments.push_back(input);
        continue;
      }
      for (const auto& [name, value] : weightParts(prepack->input(0))) {
        const std::string path = attribute(prepack, name, value);
        arguments.push_back(insertAttributeRead(*node->owningGraph(), path, program_.module, node));
      }
      for (size_t i = 1; i < prepack->inputs().size(); ++i) {
        arguments.push_back(const_cast<Value*>(prepack->input(i)));
      }
    }
    return arguments;
  }

  // Scale and zero point have the weight's channels, or no dimension if it has one scale.
  std::vector<std::pair<std::string, at::Tensor>> weightParts(const Value* quantized) {
    const at::Tensor weight = evaluator_.evaluate(quantized)->toTensor();
    const bool per_channel = weight.qscheme() == at::kPerChannelAffine;
    const at::Tensor scale = per_channel ? weight.q_per_channel_scales().to(at::kFloat)
                                         : at::scalar_tensor(weight.q_scale(), at::kFloat);
    const at::Tensor zero_point = per_channel ? weight.q_per_channel_zero_points()
                                              : at::scalar_tensor(weight.q_zero_point(), at::kLong);
    return {{"_int8", weight.int_repr()}, {"_scale", scale}, {"_zero_point", zero_point}};
  }

  // Where one part of the weight is kept: beside the float weight, if that has a name.
  std::string attribute(const Node* prepack, const std::string& suffix, const at::Tensor& value) {
    const Value* weight = prepack->input(0)->node()->input(0);
    const auto path = attributePath(weight);
    std::string module = modulePath(prepack);
    std::replace(module.begin(), module.end(), '.', '_');
    const std::string prefix = path.value_or(module.empty() ? "weight" : module + "_weight");
    const auto [owner, name] = ownerOf(program_.module, prefix + suffix);
    std::string& known = attributes_[prefix + suffix];
    if (known.empty() || !owner.attr(known).toTensor().equal(value)) {
      known = freeAttributeName(owner, name);
      jit::Module(owner).register_buffer(known, value);
    }
    return prefix.substr(0, prefix.rfind('.') + 1) + known;
  }

  static void insert(Node* node, jit::Graph& body, const std::vector<Value*>& arguments) {
    const jit::WithInsertPoint guard(node);
    const auto results = jit::insertGraph(*node->owningGraph(), body, arguments);
    results[0]->copyMetadata(node->output());
    copyOrigin(results[0]->node(), node);
    replaceAndDestroy(node, results[0]);
  }

  Program& program_;
  Evaluator evaluator_;
  std::map<Kernels, std::shared_ptr<jit::CompilationUnit>> units_;
  std::map<std::string, std::string> attributes_;  // the last one made for each wish
};

}  // namespace

void useReferences(Program& program) {
  Referrer referrer(program);
  for (Method& method : program.methods) {
    for (Node* node : allNodes(*method.graph)) {
      if (mark(node, kInt8Mark)) referrer.replace(node);
    }
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
