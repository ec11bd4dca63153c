#pragma once
// The two pipelines: ordered lists of passes, and the check of the graphs.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "inspection.h"
#include "program.h"

namespace jitquant {

// (pass, method, canonical graph text) after each pass.
using Trace = std::function<void(const std::string&, const std::string&, const std::string&)>;

class Pipeline;

struct Result {
  jit::Module module;
  std::vector<OpRecord> records;
  std::vector<InputSeen> inputs;     // convert: forward's tensor arguments
  std::vector<std::string> dropped;  // convert: data of the top module that is gone
  std::vector<bool> rounds;          // convert: for each record, see roundingOps
};

// Prepare in two steps, so that the caller configures the ops in between. Either step ends it.
class Preparation {
 public:
  Preparation(const jit::Module& model, const std::vector<std::string>& methods,
              const Trace& trace);
  ~Preparation();

  // In graph order.
  const std::vector<ConfiguredOp>& ops() const { return ops_; }
  // Kinds of all ops of the user's code, also of those that are gone by now.
  const std::vector<std::string>& written() const;

  // `decisions` has for each op the index of its qconfig, or kLeftFloat, kNoRule or kFusedFloat.
  // With `spares` the model is not to be converted, but calibrated for others in which more ops are
  // float: it observes all that they do.
  Result finish(const std::vector<int64_t>& decisions, std::vector<ObserverPair> qconfigs,
                const jit::Module& shape_recorder, bool spares);

  struct Watched {
    jit::Module module;
    std::vector<std::vector<std::string>> observers;  // for each op, one for each tensor it reads
  };
  // The float model with a shape recorder at every tensor that an op reads.
  Watched watch(const jit::Module& shape_recorder);

  // The float model in the form in which `finish` would list its ops.
  Inspection inspect(const std::vector<int64_t>& decisions, std::vector<ObserverPair> qconfigs);

 private:
  // From the normal form to the ops that are listed.
  void configureAndFold(const std::vector<int64_t>& decisions, std::vector<ObserverPair> qconfigs);

  std::unique_ptr<Pipeline> pipeline_;
  std::vector<ConfiguredOp> ops_;
};

// What convert makes.
enum class Form {
  kInt8,
  kFloat,      // float ops between quantize and dequantize
  kReference,  // int8 ops spelled out in stock float and integer ops
};

Result convert(const jit::Module& prepared, const std::vector<std::string>& methods,
               std::vector<OpRecord> records, Form form, const std::vector<std::string>& preserved,
               const Trace& trace);

struct EqualizedModel {
  jit::Module module;
  int64_t pairs;
  int64_t bounded;
};

EqualizedModel equalizeModel(const jit::Module& model, const std::vector<std::string>& methods,
                             bool unbound, const Trace& trace);

struct WatchedMeans {
  jit::Module module;
  std::vector<std::vector<std::string>> recorders;  // for each weight, those of its layers
};

// A prepared model with a recorder at the input of each layer whose bias can be corrected.
WatchedMeans watchMeansOf(const jit::Module& prepared, const std::vector<std::string>& methods,
                          std::vector<OpRecord> records, const jit::Module& recorder);
// `means`: of each of these weights, see correctBias.
jit::Module withCorrectedBias(const jit::Module& prepared, const std::vector<std::string>& methods,
                              std::vector<OpRecord> records, const std::vector<at::Tensor>& means,
                              const Trace& trace);

Result fuseConvBn(const jit::Module& model, const std::vector<std::string>& methods,
                  const Trace& trace);

}  // namespace jitquant
