#include "inline_calls.h"

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/shape_analysis.h>

#include "dead_code.h"
#include "error.h"
#include "ir_util.h"

namespace jitquant {

using c10::TypePtr;
using jit::Block;
using jit::Node;
using jit::Value;

namespace {

bool isInterfaceRead(const Node* node, const std::string& attribute) {
  const auto owner = node->input(0)->type()->cast<c10::ClassType>();
  return owner && owner->getAttribute(attribute)->kind() == c10::TypeKind::InterfaceType;
}

bool holdsFuture(const TypePtr& type) {
  if (type->kind() == c10::TypeKind::FutureType) return true;
  for (const TypePtr& inner : type->containedTypes()) {
    if (holdsFuture(inner)) return true;
  }
  return false;
}

TypePtr withoutFutures(const TypePtr& type) {
  if (const auto future = type->cast<c10::FutureType>()) {
    return withoutFutures(future->getElementType());
  }
  if (!holdsFuture(type)) return type;
  std::vector<TypePtr> contained;
  for (const TypePtr& inner : type->containedTypes()) contained.push_back(withoutFutures(inner));
  return type->withContained(std::move(contained));
}

class Inliner {
 public:
  explicit Inliner(const jit::Module* root) : root_(root) {}

  void run(Node* begin, Node* end) {
    for (Node* node = begin; node != end;) {
      Node* next = node->next();
      for (Block* inner : node->blocks()) run(*inner->nodes().begin(), inner->return_node());
      const bool is_call =
          node->kind() == c10::prim::CallMethod || node->kind() == c10::prim::CallFunction;
      if (is_call && !observerCall(node)) inlineCall(node);
      if (node->kind() == c10::prim::fork) inlineFork(node);
      node = next;
    }
  }

 private:
  void inlineCall(Node* call) {
    jit::GraphFunction* callee = calleeOf(call);
    std::string path = modulePath(call);
    if (call->kind() == c10::prim::CallMethod) {
      if (const auto receiver = attributePath(call->input(0))) path = *receiver;
    } else {
      call->removeInput(0);  // the function itself
    }
    callee->ensure_defined();
    inlineBody(call, *callee->graph(), path);
  }

  // The body runs where the fork stands, which is one of the orders that a fork allows.
  void inlineFork(Node* fork) {
    const auto body = fork->g(c10::attr::Subgraph);
    inlineBody(fork, *body, modulePath(fork));
  }

  void inlineBody(Node* call, jit::Graph& body, const std::string& path) {
    const jit::SourceRange range = call->sourceRange();
    Node* before = call->prev();
    Node* after = call->next();
    {
      const jit::WithInsertPoint guard(call);
      const auto outputs = jit::insertGraph(*call->owningGraph(), body, call->inputs());
      for (size_t i = 0; i < outputs.size(); ++i) {
        call->output(i)->replaceAllUsesWith(outputs[i]);
      }
      call->destroy();
    }
    if (before->next() != after) {
      setModulePath(before->next(), path);
      const jit::ScopePtr scope = before->next()->scope();
      for (Node* node = before->next(); node != after; node = node->next()) {
        label(node, scope, range);
      }
    }
    run(before->next(), after);
  }

  jit::GraphFunction* calleeOf(Node* call) const {
    if (jit::GraphFunction* callee = jit::tryToGraphFunction(call)) return callee;
    const auto path = attributePath(call->input(0));
    if (root_ != nullptr && path) {
      const auto [owner, name] = ownerOf(*root_, *path);
      const jit::Module receiver = owner.attr(name).toModule();
      return &jit::toGraphFunction(receiver.get_method(call->s(c10::attr::name)).function());
    }
    throw UserError("the call of " + describe(call) +
                    " cannot be inlined, since which code it runs is only known at run time. "
                    "Call a module that is an attribute.");
  }

  // The module path, and the user's line instead of one inside torch.
  static void label(Node* node, const jit::ScopePtr& path, const jit::SourceRange& call) {
    node->setScope(path);
    if (isInsideTorch(node)) node->setSourceRange(call);
    for (Block* block : node->blocks()) {
      for (Node* inner : block->nodes()) label(inner, path, call);
    }
  }

  static bool isInsideTorch(const Node* node) {
    const auto place = node->sourceRange().file_line_col();
    return place ? isTorchFile(std::get<0>(*place)) : sourceLine(node).empty();
  }

  const jit::Module* root_;
};

void check(const Node* node) {
  if (node->kind() == c10::prim::SetAttr) {
    const std::string& name = node->s(c10::attr::name);
    if (isInterfaceRead(node, name)) {
      throw UserError("the model replaces its submodule '" + name + "' while it runs (" +
                      describe(node) +
                      "), so which code it runs is only known at run time. Choose the submodule "
                      "before the model is scripted.");
    }
    if (holdsFuture(node->input(1)->type())) {
      throw UserError("the attribute '" + name + "' holds the result of a fork (" + describe(node) +
                      "). Wait for it first, and keep its value.");
    }
  }
  if (node->hasAttribute(c10::attr::Subgraph)) {
    throw UserError("the model holds " + describe(node) +
                    ", a group of ops that an optimization made. Quantize the model from before "
                    "that optimization.");
  }
}

// With the forks inlined, a future is the value itself.
void removeFutures(const std::shared_ptr<jit::Graph>& graph) {
  for (Node* node : allNodes(*graph)) {
    if (node->kind() == c10::aten::wait) replaceAndDestroy(node, node->input());
  }
  graph->remapTypes(withoutFutures);
}

// Tracing notes paths below "__module", and freezing a traced model keeps them.
std::string tracedPath(const Node* node) {
  const std::string path = modulePath(node);
  const std::string prefix = "__module.";
  return path.rfind(prefix, 0) == 0 ? path.substr(prefix.size()) : path;
}

}  // namespace

std::shared_ptr<jit::Graph> inlinedGraph(const jit::Function& method, const jit::Module* root) {
  for (const auto* arguments : {&method.getSchema().arguments(), &method.getSchema().returns()}) {
    for (const c10::Argument& argument : *arguments) {
      if (!holdsFuture(argument.type())) continue;
      throw UserError("the method '" + method.name() +
                      "' takes or returns a future. Wait for it inside of the method.");
    }
  }
  auto& function = const_cast<jit::Function&>(method);
  function.ensure_defined();
  auto graph = jit::toGraphFunction(function).graph()->copy();
  for (Node* node : allNodes(*graph)) setModulePath(node, tracedPath(node));
  Inliner(root).run(*graph->nodes().begin(), graph->return_node());
  for (const Node* node : allNodes(*graph)) check(node);
  removeFutures(graph);
  // Tracing recorded the shapes of one run; what holds for all runs is not among them.
  jit::EraseShapeInformation(graph);
  eliminateDeadCode(graph);
  return graph;
}

}  // namespace jitquant
