// canonicalize: one spelling per op.
//
// Before:
//   %y = aten::_convolution(%x, %w, %b, %stride, %pad, %dil, %false, %out_pad, %groups, ...)
//   %d = aten::dropout(%y, %p, %false); %z = aten::conv2d(%d, %w, %b, [2], ...)
// After:
//   %y = aten::conv2d(%x, %w, %b, %stride, %pad, %dil, %groups); %z = aten::conv2d(%y, %w, %b, [2,
//   2], ...)
//
// Needs:  fold_attributes, so that arguments are constants.
// Leaves: convolutions whose geometry is computed at run time. A dropout or normalization in
//         training mode is the user's mistake and raises.

#include "dead_code.h"
#include "error.h"
#include "ir_util.h"
#include "nodes.h"
#include "passes/passes.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

c10::Symbol symbol(const std::string& kind) { return c10::Symbol::fromQualString(kind); }

// One number for all dimensions becomes one for each, which is what prepacking wants.
void spreadGeometry(Node* node) {
  const size_t rank = node->kind().toUnqualString()[isConv(node) ? 4 : 14] - '0';
  for (const size_t i : {3, 4, 5, 7}) {
    if (i >= node->inputs().size()) continue;
    const auto values = constantInts(node->input(i));
    if (!values || values->size() != 1 || rank == 1) continue;
    node->replaceInput(i, insertConstantBefore(node, std::vector<int64_t>(rank, (*values)[0])));
  }
}

// The spatial rank: the weight's, or that of the longest argument. One number may stand for all
// dimensions, so that a single one tells nothing. 0 if unknown.
size_t spatialRank(const Node* node, const jit::Module& module) {
  size_t rank = 0;
  for (const size_t i : {3, 4, 5, 7}) {
    const auto values = constantInts(node->input(i));
    if (!values) return 0;
    rank = std::max(rank, values->size());
  }
  if (const auto weight = constantTensor(node->input(1), module)) {
    rank = static_cast<size_t>(std::max<int64_t>(weight->dim() - 2, 0));
  } else if (rank == 1) {
    return 0;
  }
  return rank <= 3 ? rank : 0;
}

// aten::_convolution is what tracing records for every convolution.
void rewriteConvolution(Node* node, const jit::Module& module) {
  const size_t dimensions = spatialRank(node, module);
  const auto transposed = constantNumber(node->input(6));
  if (dimensions == 0 || !transposed) return;
  const std::string rank = std::to_string(dimensions) + "d";
  const auto in = node->inputs();
  if (*transposed != 0.0) {
    spreadGeometry(replaceWithOp(node, symbol("aten::conv_transpose" + rank),
                                 {in[0], in[1], in[2], in[3], in[4], in[7], in[8], in[5]}));
  } else {
    spreadGeometry(replaceWithOp(node, symbol("aten::conv" + rank),
                                 {in[0], in[1], in[2], in[3], in[4], in[5], in[8]}));
  }
}

// padding='same' and 'valid' become numbers; an odd total pads one more on the right, as torch
// does.
void rewriteStringPadding(Node* node, const jit::Module& module) {
  const auto mode = jit::toIValue(node->input(4));
  if (!mode || !mode->isString()) return;
  const auto weight = constantTensor(node->input(1), module);
  const auto dilation = constantInts(node->input(5));
  if (!weight || !dilation || weight->dim() < 3 || weight->dim() > 5) return;
  const int64_t rank = weight->dim() - 2;
  std::vector<int64_t> padding(rank, 0);
  std::vector<int64_t> extra;  // last dimension first, as aten::constant_pad_nd wants it
  bool asymmetric = false;
  if (mode->toStringRef() == "same") {
    for (int64_t i = rank - 1; i >= 0; --i) {
      const int64_t step = dilation->size() == 1 ? (*dilation)[0] : (*dilation)[i];
      const int64_t total = step * (weight->size(i + 2) - 1);
      padding[i] = total / 2;
      extra.insert(extra.end(), {0, total % 2});
      asymmetric = asymmetric || total % 2 != 0;
    }
  }
  Value* input = node->input(0);
  if (asymmetric) {
    input = insertOp(node, c10::aten::constant_pad_nd,
                     {input, insertConstantBefore(node, extra), insertConstantBefore(node, 0.0)});
  }
  spreadGeometry(
      replaceWithOp(node, symbol("aten::conv" + std::to_string(rank) + "d"),
                    {input, node->input(1), node->input(2), node->input(3),
                     insertConstantBefore(node, padding), node->input(5), node->input(6)}));
}

void checkEvalMode(Node* node, size_t training_input) {
  const auto training = constantNumber(node->input(training_input));
  if (training && *training == 0.0) return;
  throw UserError(describe(node) +
                  " runs in training mode. Call model.eval() before torch.jit.script or "
                  "torch.jit.trace (or on the scripted model), then quantize it.");
}

void checkNoPython(const Node* node) {
  const auto kind = node->kind();
  if (kind != c10::prim::PythonOp && kind != c10::prim::IgnoredPythonOp) return;
  throw UserError(describe(node) +
                  " calls Python (@torch.jit.ignore), which no file can hold. Remove the call.");
}

// What torch.jit.optimize_for_inference made and undo_mkldnn does not know can neither be read as a
// float op nor saved.
void checkPortable(const Node* node) {
  const std::string_view kind = node->kind().toQualString();
  const bool is_portable = kind.find("mkldnn") == std::string_view::npos &&
                           kind.find("MKLDNN") == std::string_view::npos &&
                           kind.find("prepacked") == std::string_view::npos;
  if (is_portable) return;
  throw UserError("the model holds " + std::string(kind) +
                  ", which torch.jit.optimize_for_inference makes for one machine. Quantize the "
                  "model from before that call.");
}

bool isConvolutionWithStringPadding(const Node* node) {
  static const c10::Symbol kMode = c10::Symbol::aten("_convolution_mode");
  if (node->kind() == kMode) return true;
  return isConv(node) && node->input(4)->type()->kind() == c10::TypeKind::StringType;
}

void canonicalizeNode(Node* node, const jit::Module& module) {
  static const auto* const kDropouts =
      new std::vector<c10::Symbol>{c10::aten::dropout,        c10::aten::feature_dropout,
                                   c10::aten::alpha_dropout,  c10::aten::feature_alpha_dropout,
                                   c10::aten::dropout_,       c10::aten::feature_dropout_,
                                   c10::aten::alpha_dropout_, c10::aten::feature_alpha_dropout_};
  if (node->kind() == c10::aten::_convolution) {
    rewriteConvolution(node, module);
  } else if (isConvolutionWithStringPadding(node)) {
    rewriteStringPadding(node, module);
  } else if (isConv(node) || isConvTranspose(node)) {
    spreadGeometry(node);
  } else if (node->kind() == c10::aten::batch_norm || node->kind() == c10::aten::instance_norm) {
    // Without running statistics it normalizes by the input's own, in eval mode too.
    if (!isNone(node->input(3))) checkEvalMode(node, 5);
  } else if (std::find(kDropouts->begin(), kDropouts->end(), node->kind()) != kDropouts->end()) {
    checkEvalMode(node, 2);
    replaceAndDestroy(node, node->input(0));
  }
}

}  // namespace

void canonicalize(Program& program) {
  for (Method& method : program.methods) {
    const auto may_matter = [](const Node* node) {
      return node->kind() != c10::prim::Constant && node->kind() != c10::prim::GetAttr;
    };
    for (Node* node : nodesWhere(*method.graph, may_matter)) {
      checkNoPython(node);
      checkPortable(node);
      canonicalizeNode(node, program.module);
    }
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
