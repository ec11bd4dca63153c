#include "symbolic_sizes.h"

#include "ir_util.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

// Of a window that moves: kernel, stride, padding and dilation, each (height, width).
struct Windows {
  std::vector<int64_t> kernel, stride, padding, dilation;
};

Size constant(int64_t number) { return {nullptr, number, 1}; }

// floor((n + a) / b) positions of a window, and floor((floor((n + a) / b) + c) / d) is
// floor((n + a + b c) / (b d)).
Size moved(const Size& size, int64_t plus, int64_t over) {
  if (size.of == nullptr) return constant((size.plus + plus) / over);
  return {size.of, size.plus + size.over * plus, size.over * over};
}

ImageSizes ofItsOwn(const Value* value) {
  const Size size{value, 0, 1};
  return {size, size, size, size};
}

bool areInts(const std::vector<const Value*>& values) {
  return std::all_of(values.begin(), values.end(),
                     [](const Value* value) { return constantInts(value).has_value(); });
}

std::optional<Windows> windowsOf(std::vector<int64_t> kernel, const Value* stride,
                                 const Value* padding, const Value* dilation) {
  if (!areInts({stride, padding, dilation})) return std::nullopt;
  Windows windows{std::move(kernel), *constantInts(stride), *constantInts(padding),
                  *constantInts(dilation)};
  if (windows.stride.empty()) windows.stride = windows.kernel;
  for (auto* each : {&windows.kernel, &windows.stride, &windows.padding, &windows.dilation}) {
    if (each->size() == 1) each->push_back(each->front());
    if (each->size() != 2) return std::nullopt;
  }
  return windows;
}

ImageSizes slide(ImageSizes sizes, const Windows& by) {
  for (size_t i = 0; i < 2; ++i) {
    const int64_t lost = by.dilation[i] * (by.kernel[i] - 1) + 1 - 2 * by.padding[i];
    sizes[2 + i] = moved(sizes[2 + i], by.stride[i] - lost, by.stride[i]);
  }
  return sizes;
}

bool keepsSizes(const std::string& kind) {
  static const std::set<std::string> kinds{"aten::quantize_per_tensor",
                                           "aten::dequantize",
                                           "aten::relu",
                                           "aten::relu6",
                                           "aten::hardtanh",
                                           "aten::clamp",
                                           "aten::hardswish",
                                           "aten::hardsigmoid",
                                           "aten::sigmoid",
                                           "aten::silu",
                                           "aten::gelu",
                                           "aten::tanh",
                                           "aten::leaky_relu",
                                           "aten::elu",
                                           "aten::mish",
                                           "aten::batch_norm",
                                           "aten::group_norm",
                                           "aten::instance_norm"};
  return kinds.count(kind) != 0;
}

}  // namespace

SymbolicSizes::SymbolicSizes(const Program& program, const Method& method) : program_(program) {
  for (const Value* input : method.graph->inputs()) sizes_[input] = ofItsOwn(input);
  for (const Node* node : allNodes(*method.graph)) visit(node);
}

void SymbolicSizes::visit(const Node* node) {
  for (const jit::Block* block : node->blocks()) {
    for (const Value* input : block->inputs()) sizes_[input] = ofItsOwn(input);
  }
  const auto sizes = sizesOf(node);
  for (const Value* output : node->outputs()) sizes_[output] = sizes ? *sizes : ofItsOwn(output);
}

std::optional<ImageSizes> SymbolicSizes::sizesOf(const Node* node) const {
  const auto index = mark(node, kOpMark);
  const bool is_int8 = mark(node, kInt8Mark) && index;
  const std::string kind = is_int8 ? program_.records[*index].kind : node->kind().toQualString();
  if (node->outputs().size() != 1 || !isTensor(node->output())) return std::nullopt;
  if (keepsSizes(kind)) return sizes_.at(node->input(0));
  if (!is_int8) return std::nullopt;
  if (kind == "aten::conv2d") return convolved(node);
  if (kind == "aten::add" || kind == "aten::mul") return broadcast(node);
  if (kind == "aten::cat") return joined(node);
  if (kind == "aten::max_pool2d" && constantInts(node->input(1)) &&
      constantNumber(node->input(5)) == 0.0) {
    const auto windows =
        windowsOf(*constantInts(node->input(1)), node->input(2), node->input(3), node->input(4));
    if (windows) return slide(sizes_.at(node->input(0)), *windows);
  }
  if (kind == "aten::adaptive_avg_pool2d" && constantInts(node->input(1))) {
    const auto sizes = *constantInts(node->input(1));
    const ImageSizes& input = sizes_.at(node->input(0));
    if (sizes.size() == 2) return {{input[0], input[1], constant(sizes[0]), constant(sizes[1])}};
  }
  return std::nullopt;
}

std::optional<ImageSizes> SymbolicSizes::convolved(const Node* conv) const {
  const Node* prepack = conv->inputs().size() > 1 ? conv->input(1)->node() : nullptr;
  if (prepack == nullptr || !program_.target->isPrepack(prepack)) return std::nullopt;
  const auto weight = constantTensor(prepack->input(0)->node()->input(0), program_.module);
  if (!weight || weight->dim() != 4) return std::nullopt;
  const auto windows = windowsOf({weight->size(2), weight->size(3)}, prepack->input(2),
                                 prepack->input(3), prepack->input(4));
  if (!windows) return std::nullopt;
  ImageSizes sizes = slide(sizes_.at(conv->input(0)), *windows);
  sizes[1] = constant(weight->size(0));
  return sizes;
}

ImageSizes SymbolicSizes::broadcast(const Node* node) const {
  ImageSizes sizes = sizes_.at(node->input(0));
  if (!isTensor(node->input(1))) return sizes;
  const ImageSizes& others = sizes_.at(node->input(1));
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == others[i] || others[i] == constant(1)) continue;
    sizes[i] = sizes[i] == constant(1) ? others[i] : Size{node->output(), 0, 1};
  }
  return sizes;
}

std::optional<ImageSizes> SymbolicSizes::joined(const Node* cat) const {
  const Node* list = cat->input(0)->node();
  if (list->kind() != c10::prim::ListConstruct || constantNumber(cat->input(1)) != 1.0) {
    return std::nullopt;
  }
  ImageSizes sizes = sizes_.at(list->input(0));
  int64_t channels = 0;
  for (const Value* part : list->inputs()) {
    ImageSizes other = sizes_.at(part);
    if (other[1].of != nullptr) return std::nullopt;
    channels += other[1].plus;
    other[1] = sizes[1];
    if (!(other == sizes)) return std::nullopt;
  }
  sizes[1] = constant(channels);
  return sizes;
}

}  // namespace jitquant
