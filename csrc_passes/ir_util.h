#pragma once
// Small questions about TorchScript IR, asked by several passes.

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// Every node of the graph, nested blocks included, in execution order.
std::vector<jit::Node*> allNodes(jit::Graph& graph);

// Lets the users of the node's output read `value`, and destroys the node.
void replaceAndDestroy(jit::Node* node, jit::Value* value);

// "layer1.0.conv1" for a value that reads a submodule or attribute of self; nullopt otherwise.
std::optional<std::string> attributePath(const jit::Value* value);

// Splits "layer1.0.weight" into the owning module and "weight".
std::pair<jit::Module, std::string> ownerOf(const jit::Module& root, const std::string& path);

// The value of a constant, or of an attribute of the module that no method changes.
std::optional<at::IValue> constantOrAttribute(const jit::Value* value, const jit::Module& module);
std::optional<at::Tensor> constantTensor(const jit::Value* value, const jit::Module& module);

// The number behind a constant, whether int, float, bool or a 0-dim tensor.
std::optional<double> constantNumber(const jit::Value* value);
std::optional<std::vector<int64_t>> constantInts(const jit::Value* value);
bool isNone(const jit::Value* value);

// Whether no user of a list can change it, or hand it to somebody who can.
bool isOnlyRead(const jit::Value* list);

// Inserts reads of self's attribute `path` before `before`.
jit::Value* insertAttributeRead(jit::Graph& graph, const std::string& path, const jit::Module& root,
                                jit::Node* before);

// Sets a tensor attribute, also where it was None before.
void setTensorAttribute(const jit::Module& root, const std::string& path, const at::Tensor& value);

// A name that `module` does not use yet: `wish`, or wish_1, wish_2...
std::string freeAttributeName(const jit::Module& module, const std::string& wish);

// Module path and source line of the user's code that a node came from.
std::string modulePath(const jit::Node* node);
// "__torch__.torch.nn.modules.linear.Linear" for the module that the node's code belongs to; ""
// where the path names none.
std::string moduleClass(const jit::Node* node, const jit::Module& root);
void setModulePath(jit::Node* node, const std::string& path);
// Notes the node's kind as the one that the user wrote. Ops that are made of it inherit that with
// its module path, and nodes of one scope are of one origin.
void noteOrigin(jit::Node* node);
std::string writtenKind(const jit::Node* node);
bool isTorchFile(const std::string& file);  // torch's own Python
std::string sourceLine(const jit::Node* node);
std::string describe(const jit::Node* node);  // "aten::conv2d in 'layer1.0.conv1' (resnet.py:92)"

// Marks that passes leave on nodes; strip them before the graph is run or saved.
void setMark(jit::Node* node, const char* name, int64_t value);
std::optional<int64_t> mark(const jit::Node* node, const char* name);
void stripMarks(jit::Graph& graph);
inline constexpr const char* kOpMark = "jitquant_op";            // index into Program::records
inline constexpr const char* kMutableMark = "jitquant_mutable";  // read of what a method changes
inline constexpr const char* kQConfigMark =
    "jitquant_qconfig";  // index of its qconfig, or negative
inline constexpr const char* kInt8Mark =
    "jitquant_int8";  // an op on int8 tensors that convert made
inline constexpr const char* kValueMark =
    "jitquant_value";  // computes the value of the op with that index
inline constexpr const char* kBroadcastMark =
    "jitquant_broadcast";  // an int8 op whose second operand is better expanded
inline constexpr const char* kMarks[] = {kOpMark,   kMutableMark, kQConfigMark,
                                         kInt8Mark, kValueMark,   kBroadcastMark};
// Whether the configuration leaves this op float. False before configure has run.
bool isLeftFloat(const jit::Node* node);

// Copies source range, callstack, module path and marks.
jit::Node* copyOrigin(jit::Node* to, const jit::Node* from);
// A new op of one output before a node, or in place of one whose output's metadata it takes over.
// Either way it is of that node's origin.
jit::Value* insertOp(jit::Node* before, c10::Symbol kind, at::ArrayRef<jit::Value*> inputs);
jit::Node* replaceWithOp(jit::Node* old, c10::Symbol kind, at::ArrayRef<jit::Value*> inputs);

// Paths of the attributes that any kept method sets.
std::set<std::string> assignedPaths(Program& program);

bool isConv(const jit::Node* node);           // conv1d, conv2d, conv3d
bool isConvTranspose(const jit::Node* node);  // conv_transpose1d, conv_transpose2d...
bool isLayer(const jit::Node* node);  // those and linear: weight and bias come second and third
bool isTensor(const jit::Value* value);
bool hasOneUse(const jit::Value* value);

// Constants before `before`.
jit::Value* insertConstantBefore(jit::Node* before, const at::IValue& value);

// Observers hang on the root module under this prefix; flatten leaves their calls alone.
inline constexpr const char* kObserverPrefix = "jitquant_observer_";
// The templates of each qconfig: for weights; and for activations, if it is dynamic.
inline constexpr const char* kWeightPrefix = "jitquant_observer_weight_";
inline constexpr const char* kDynamicPrefix = "jitquant_observer_dynamic_";
// Keeps what forward gets besides tensors.
inline constexpr const char* kArgumentRecorder = "jitquant_observer_arguments";
bool isObserverName(const std::string& name);
// The observer's name if `node` calls one.
std::optional<std::string> observerCall(const jit::Node* node);

}  // namespace jitquant
