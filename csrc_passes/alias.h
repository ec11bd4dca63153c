#pragma once
// Which values may share memory, and which of them the graph writes in place.

#include <map>
#include <set>
#include <unordered_map>

#include "program.h"

namespace jitquant {

// Puts values that may share memory into one class (Steensgaard 1996): an op joins what its schema
// says may alias, and containers and objects are of one class with all that is put into them.
// Reads of two attributes are of one class only where these share a storage, or the graph puts one
// into the other. libtorch's AliasDb instead takes all attributes, and all that is ever put into a
// container, for one another, once the graph sets a single attribute.
class Aliases {
 public:
  Aliases(jit::Graph& graph, const jit::Module& module);

  // Whether the graph writes the value's memory at all.
  bool isWritten(const jit::Value* value) const;
  // The first node that does so once the value is there, or null.
  const jit::Node* laterWriterOf(const jit::Value* value) const;
  // All values that may share memory with it, itself included, in graph order.
  std::vector<const jit::Value*> aliasesOf(const jit::Value* value) const;
  // The nodes that write it, in graph order.
  std::vector<const jit::Node*> writersOf(const jit::Value* value) const;

 private:
  using Class = size_t;

  Class newClass();
  Class find(Class member) const;
  void join(Class a, Class b) { parent_[find(a)] = find(b); }
  Class classOf(const jit::Value* value);
  void joinAll(const std::vector<const jit::Value*>& values);

  void visit(const jit::Node* node);
  void visitRead(const jit::Node* node);
  void visitWrite(const jit::Node* node);
  void visitBlocks(const jit::Node* node);
  void visitOp(const jit::Node* node, const c10::FunctionSchema& schema);
  void write(const jit::Value* value, const jit::Node* writer);
  bool runsAfter(const jit::Node* writer, const jit::Value* value) const;

  const jit::Module& module_;
  std::vector<Class> parent_;
  // Looked up only.
  std::unordered_map<const jit::Value*, Class> values_;
  std::map<std::string, Class> attributes_;
  std::unordered_map<const c10::StorageImpl*, Class> storages_;
  std::unordered_map<const jit::Node*, size_t> position_;
  std::vector<const jit::Value*> in_order_;  // those of values_, each when it was first met
  std::vector<std::pair<Class, const jit::Node*>> writes_;
  std::unordered_map<Class, std::vector<const jit::Node*>> writers_;
};

// Whether Aliases would note that the node itself writes something; of nodes in its blocks ask too.
bool mayWriteTensors(const jit::Node* node);

// Of those that leave their input as it is in eval mode: dropout_ and others write.
bool isDropout(const jit::Node* node);

// Whether an op may return its input, or a view of it, though its schema does not say so.
// libtorch's own alias analysis takes the result for fresh memory.
bool mayReturnItsInput(const jit::Node* node);

// Whether an op makes memory of its own for its only output.
bool makesFreshTensor(const jit::Node* node);

// The storage behind the read of a tensor attribute; null for every other node.
c10::StorageImpl* storageOf(const jit::Node* node, const jit::Module& module);

// The storages of tensors that lists, dicts, tuples and objects of the tree hold.
std::set<c10::StorageImpl*> heldStorages(const jit::Module& module);

}  // namespace jitquant
