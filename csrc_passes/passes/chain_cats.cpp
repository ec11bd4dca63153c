// chain_cats: an int8 concatenation begins with an earlier one that holds its first parts already.
//
// Before:
//   %l = prim::ListConstruct(%a, %b); %y = quantized::cat(%l, %one, s, z)
//   %m = prim::ListConstruct(%a, %b, %c); %u = quantized::cat(%m, %one, s, z)
// After:
//   %l = prim::ListConstruct(%a, %b); %y = quantized::cat(%l, %one, s, z)
//   %m = prim::ListConstruct(%y, %c); %u = quantized::cat(%m, %one, s, z)
// What the kernel costs is mostly calls of memcpy, one for each part of each pixel. Values are the
// same: parts that have the qparams of the result are copied. A concatenation of one such part is
// the part itself.
//
// Needs:  fuse, so that all readers of int8 values are there. It runs before fuse_sum, which writes
//         over values that nothing else reads.
// Leaves: concatenations in different blocks, or along an axis that is not constant.

#include <algorithm>
#include <unordered_map>

#include "dead_code.h"
#include "ir_util.h"
#include "passes/passes.h"
#include "qparams.h"
#include "targets/target.h"

namespace jitquant {

using jit::Node;
using jit::Value;

namespace {

class Chainer {
 public:
  explicit Chainer(Program& program) : program_(program) {}

  void visit(Node* node) {
    if (!isCat(node)) return;
    if (isItsOnlyPart(node)) {
      program_.records[*mark(node, kOpMark)].reason = "the only tensor that it reads";
      replaceAndDestroy(node, partsOf(node)[0]);
      return;
    }
    std::vector<Node*>& earlier = by_first_part_[partsOf(node)[0]];
    Node* longest = nullptr;
    for (Node* cat : earlier) {
      if (begins(cat, node) && (!longest || partsOf(cat).size() > partsOf(longest).size())) {
        longest = cat;
      }
    }
    earlier.push_back(node);
    if (longest != nullptr) chain(longest, node);
  }

 private:
  bool isCat(const Node* node) const {
    const auto index = mark(node, kOpMark);
    return mark(node, kInt8Mark) && index && program_.records[*index].kind == "aten::cat" &&
           node->input(0)->node()->kind() == c10::prim::ListConstruct &&
           !node->input(0)->node()->inputs().empty() && constantNumber(node->input(1));
  }

  // The parts that the model had, whichever of them stand for several now.
  const std::vector<Value*>& partsOf(const Node* cat) {
    const auto inputs = cat->input(0)->node()->inputs();
    return parts_.try_emplace(cat, inputs.begin(), inputs.end()).first->second;
  }

  bool haveEqualQParams(const Value* a, const Value* b) const {
    return areEqual(qparamsOf(a, program_), qparamsOf(b, program_));
  }

  bool isItsOnlyPart(const Node* cat) {
    const bool has_relu = program_.target->find("aten::cat")->op != cat->kind().toQualString();
    return !has_relu && partsOf(cat).size() == 1 &&
           haveEqualQParams(partsOf(cat)[0], cat->output());
  }

  bool begins(Node* cat, Node* longer) {
    const std::vector<Value*>&first = partsOf(cat), &parts = partsOf(longer);
    return cat->kind() == longer->kind() && cat->owningBlock() == longer->owningBlock() &&
           first.size() > 1 && first.size() < parts.size() &&
           std::equal(first.begin(), first.end(), parts.begin()) &&
           constantNumber(cat->input(1)) == constantNumber(longer->input(1)) &&
           haveEqualQParams(cat->output(), longer->output());
  }

  void chain(Node* cat, Node* longer) {
    std::vector<Value*> parts = partsOf(longer);
    parts.erase(parts.begin(), parts.begin() + static_cast<long>(partsOf(cat).size()));
    parts.insert(parts.begin(), cat->output());
    Node* old = longer->input(0)->node();
    Node* list = longer->owningGraph()->create(c10::prim::ListConstruct, parts);
    copyOrigin(list, old)->insertBefore(longer);
    list->output()->setType(old->output()->type());
    longer->replaceInput(0, list->output());
  }

  Program& program_;
  std::unordered_map<const Value*, std::vector<Node*>> by_first_part_;  // looked up only
  std::unordered_map<const Node*, std::vector<Value*>> parts_;          // looked up only
};

}  // namespace

void chainCats(Program& program) {
  for (Method& method : program.methods) {
    Chainer chainer(program);
    for (Node* node : allNodes(*method.graph)) chainer.visit(node);
    eliminateDeadCode(method.graph);
  }
}

}  // namespace jitquant
