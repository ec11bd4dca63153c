#pragma once
// Questions about embeddings: ops that look rows up in a table of weights. Their qconfig may ask
// for rows of bytes or of 4 bits, each with a scale and a lowest value of its own; they give float.

#include "op_table.h"
#include "targets/target.h"

namespace jitquant {

bool isEmbedding(const jit::Node* node);  // aten::embedding and aten::embedding_bag

// Whether a qconfig is for tables only.
bool isForTables(const ObserverPair& qconfig);

// How the table of an embedding whose qconfig has that index is packed; null for all other ops and
// qconfigs, and for negative indices.
const TableRow* tableRow(const jit::Node* node, int64_t qconfig, const Program& program);

// Why an embedding stays float, or "".
std::string whyNotTable(const jit::Node* node, int64_t qconfig, const Program& program);

// The reasons of embeddings without a qconfig for tables, and of other ops with one.
inline constexpr const char* kTableIsFloat =
    "it copies rows of a table, and gives float: float_qparams_weight_only_qconfig packs the table";
inline constexpr const char* kNoTableHere = "its qconfig is for the tables of embeddings";

// Inputs of aten::embedding_bag.
inline constexpr size_t kBagMode = 4;
inline constexpr size_t kBagWeights = 6;
inline constexpr size_t kBagLastOffset = 7;
inline constexpr size_t kBagPadding = 8;  // only its longer overload has it
// Its modes.
inline constexpr double kSum = 0.0;
inline constexpr double kMean = 1.0;

}  // namespace jitquant
