#pragma once
// LSTM and GRU ops over whole sequences: what their inputs are.

#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

bool isRecurrent(const jit::Node* node);  // aten::lstm, aten::gru
// Whether it draws no random numbers, which torch's schema takes for granted that it does.
bool isInEvalMode(const jit::Node* recurrent);
// The form for packed sequences, which reads the sizes of batches.
bool readsPacked(const jit::Node* recurrent);
jit::Value* argumentNamed(const jit::Node* node, const std::string& name);
// The list of weights and biases.
size_t paramsInput(const jit::Node* recurrent);

// One direction of one layer. The biases are null in a layer without.
struct Cell {
  jit::Value* w_ih;  // (gates * hidden, input)
  jit::Value* w_hh;  // (gates * hidden, hidden)
  jit::Value* b_ih;  // (gates * hidden,)
  jit::Value* b_hh;
};
// Layer by layer, the forward direction first. Needs a list that isRecurrentLayer accepts.
std::vector<Cell> cellsOf(const jit::Node* recurrent);

// "" or why a recurrent op stays float.
std::string isRecurrentLayer(const jit::Node* node, const jit::Module& module);

}  // namespace jitquant
