// restore_layout: what depends on the memory layout reads contiguous tensors, as in the float
// model.
//
// Before, with a channels-last int8 convolution behind %d:
//   %d = aten::dequantize(%q); %v = aten::view(%d, %sizes); %s = aten::sigmoid(%d); return (%v, %s)
// After:
//   %d = aten::dequantize(%q); %c = aten::contiguous(%d, 0); %v = aten::view(%c, %sizes)
//   %s = aten::sigmoid(%d); %r = aten::contiguous(%s, 0); return (%v, %r)
//
// What an op writes in place must not be copied where it is read. Where that depends on the layout,
// all dequantized values of the method are made contiguous instead, and so is what is made of them.
//
// Needs:  fuse. Contiguous is free where the tensor is contiguous already.
// Leaves: results of which calibration saw other ranks than 3 to 5. A model that was run in
//         channels-last returns contiguous tensors of the same values.

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "alias.h"
#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

bool dependsOnLayout(const Node* node) {
  const auto kind = node->kind();
  return kind == c10::aten::view || kind == c10::aten::as_strided || kind == c10::aten::stride ||
         kind == c10::aten::is_contiguous || kind == c10::aten::view_as ||
         // The order in which random numbers are drawn.
         kind == c10::aten::rand_like || kind == c10::aten::randn_like ||
         kind == c10::aten::randint_like || kind == c10::aten::bernoulli;
}

// Whether the result has the layout of the tensors that the op reads. Views have strides of their
// own in the float model, too.
bool keepsLayout(const Node* node) {
  static const std::unordered_set<std::string> kinds{
      "aten::sigmoid",     "aten::tanh",   "aten::silu",
      "aten::gelu",        "aten::mish",   "aten::softplus",
      "aten::exp",         "aten::log",    "aten::sqrt",
      "aten::abs",         "aten::neg",    "aten::relu",
      "aten::relu6",       "aten::clamp",  "aten::hardtanh",
      "aten::hardsigmoid", "aten::elu",    "aten::hardswish",
      "aten::leaky_relu",  "aten::prelu",  "aten::softmax",
      "aten::log_softmax", "aten::add",    "aten::sub",
      "aten::rsub",        "aten::mul",    "aten::div",
      "aten::pow",         "aten::square", "aten::upsample_bilinear2d",
      "aten::avg_pool2d",  "aten::conv2d", "aten::adaptive_avg_pool2d"};
  return kinds.count(node->kind().toQualString()) != 0;
}

// Which values may be channels-last: those that are dequantized and not known to have another rank
// than 3 to 5, and what keeps their layout.
class Layouts {
 public:
  explicit Layouts(const Program& program) : program_(program) {}

  bool mayBeChannelsLast(const Value* value) {
    if (!isTensor(value)) return false;
    const auto known = known_.find(value);
    if (known != known_.end()) return known->second;
    return known_[value] = find(value);
  }

 private:
  bool find(const Value* value) {
    const Node* node = value->node();
    const bool is_loop = node->kind() == c10::prim::Loop;  // its first return is no output
    for (const jit::Block* block : node->blocks()) {
      if (mayBeChannelsLast(block->outputs()[value->offset() + (is_loop ? 1 : 0)])) return true;
    }
    if (keepsLayout(node)) {
      return std::any_of(node->inputs().begin(), node->inputs().end(),
                         [&](const Value* input) { return mayBeChannelsLast(input); });
    }
    return node->kind() == c10::aten::dequantize && mayBeImage(value);
  }

  bool mayBeImage(const Value* value) const {
    const auto found = program_.observations.find(value);
    if (found == program_.observations.end() || found->second.shapes.empty()) return true;
    const auto& shapes = found->second.shapes;
    return std::any_of(shapes.begin(), shapes.end(), [](const std::vector<int64_t>& shape) {
      return shape.size() >= 3 && shape.size() <= 5;
    });
  }

  const Program& program_;
  std::unordered_map<const Value*, bool> known_;  // looked up only
};

Node* insertContiguous(Value* value, Node* before) {
  Value* format = insertConstantBefore(before, static_cast<int64_t>(at::MemoryFormat::Contiguous));
  Node* contiguous = before->owningGraph()->create(c10::aten::contiguous, {value, format});
  contiguous->setScope(before->scope());
  return contiguous->insertBefore(before);
}

void readContiguous(Node* reader, size_t input) {
  reader->replaceInput(input, insertContiguous(reader->input(input), reader)->output());
}

// Results, also those inside of returned tuples, lists and dicts.
void returnContiguous(Node* results, Layouts& layouts, const Aliases& aliases) {
  for (size_t i = 0; i < results->inputs().size(); ++i) {
    Value* result = results->input(i);
    const auto kind = result->node()->kind();
    if (kind == c10::prim::TupleConstruct || kind == c10::prim::ListConstruct ||
        kind == c10::prim::DictConstruct) {
      returnContiguous(result->node(), layouts, aliases);
    } else if (layouts.mayBeChannelsLast(result) && !aliases.isWritten(result)) {
      readContiguous(results, i);
    }
  }
}

void dequantizeContiguous(const std::vector<Node*>& nodes, Layouts& layouts) {
  for (Node* node : nodes) {
    if (node->kind() != c10::aten::dequantize || !layouts.mayBeChannelsLast(node->output())) {
      continue;
    }
    const auto uses = node->output()->uses();
    Node* contiguous = insertContiguous(node->output(), node->next());
    for (const jit::Use& use : uses) use.user->replaceInput(use.offset, contiguous->output());
  }
}

}  // namespace

void restoreLayout(Program& program) {
  for (Method& method : program.methods) {
    const std::vector<Node*> nodes = allNodes(*method.graph);
    const bool has_int8 = std::any_of(nodes.begin(), nodes.end(), [](const Node* node) {
      return node->kind() == c10::aten::dequantize;
    });
    if (!has_int8) continue;
    const Aliases aliases(*method.graph, program.module);
    bool reads_written = false;
    for (Node* node : nodes) {
      if (!dependsOnLayout(node) || !isTensor(node->input(0))) continue;
      const bool is_written = aliases.isWritten(node->input(0));
      reads_written |= is_written;
      if (!is_written) readContiguous(node, 0);
    }
    Layouts layouts(program);
    if (reads_written) dequantizeContiguous(nodes, layouts);
    returnContiguous(method.graph->return_node(), layouts, aliases);
  }
}

}  // namespace jitquant
