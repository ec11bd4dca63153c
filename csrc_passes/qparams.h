#pragma once
// Quantize and dequantize nodes, and the qparams that a value has in a graph.

#include <optional>

#include "program.h"

namespace jitquant {

// %q = aten::quantize_per_tensor(%value, ...) and %d = aten::dequantize(%q), before `before`.
struct QuantizePair {
  jit::Node* quantize;
  jit::Node* dequantize;
};
QuantizePair insertQuantizePair(jit::Value* value, const QParams& qparams, jit::Node* before);

// Reads the templates that hang on a prepared model into Program::qconfigs.
void readQConfigs(Program& program);

// The qparams with which the weight of a layer is packed.
QParams weightQParams(const jit::Node* layer, const Program& program);

// The same for a constant weight that `reader` reads, with qparams by the qconfig's observer.
void insertWeightPair(jit::Node* reader, size_t input, const ObserverPair& qconfig,
                      const Program& program);

// The qparams of a per-tensor quantized value, where they are constants of the graph.
std::optional<QParams> staticQParams(const jit::Value* quantized);

// The same for any int8 value that propagate_dequantize or lower made.
std::optional<QParams> qparamsOf(const jit::Value* quantized, const Program& program);

// Whether both are known, per tensor, and the same.
bool areEqual(const std::optional<QParams>& a, const std::optional<QParams>& b);

// The integer to which the engine's saturating kernels quantize `value`: clamp(round(v/s)+z, 0,
// 255).
int64_t quantizeNumber(double value, const QParams& qparams);

// What calibration saw of `from` also holds for `to`, the value that stands for it.
void carryObservation(Program& program, const jit::Value* from, const jit::Value* to);

// Calls an observer's calculate_qparams.
QParams readQParams(jit::Module observer);

// qparams for a value that lies within `bounds`: a range that an observer chose wider is cut, so
// that the bounds are the lowest and highest integer. Only where all 8 bits are in use.
QParams tighten(const QParams& qparams, std::pair<double, double> bounds);

// qparams that hold the ranges of both, per tensor.
QParams unite(const QParams& a, const QParams& b);

QParams perTensor(double scale, int64_t zero_point);

}  // namespace jitquant
