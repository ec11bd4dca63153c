#pragma once
// The two pipelines: ordered lists of passes, each followed by a check of the graphs.

#include <functional>
#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// (pass, method, canonical graph text) after each pass.
using Trace = std::function<void(const std::string&, const std::string&, const std::string&)>;
// The index of the qconfig for an op (module path, kind), or -1 to leave it float.
using Resolver = std::function<int64_t(const std::string&, const std::string&)>;

struct Result {
  jit::Module module;
  std::vector<OpRecord> records;
  std::vector<InputSeen> inputs;     // convert: forward's tensor arguments
  std::vector<std::string> dropped;  // convert: data of the top module that is gone
};

Result prepare(const jit::Module& model, const std::vector<std::string>& methods,
               const Resolver& resolve, std::vector<ObserverPair> qconfigs,
               const jit::Module& shape_recorder, const Trace& trace);

Result convert(const jit::Module& prepared, const std::vector<std::string>& methods,
               std::vector<OpRecord> records, bool debug, const std::vector<std::string>& preserved,
               const Trace& trace);

Result fuseConvBn(const jit::Module& model, const std::vector<std::string>& methods,
                  const Trace& trace);

}  // namespace jitquant
