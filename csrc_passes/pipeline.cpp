#include "pipeline.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/canonicalize.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "drop_observers.h"
#include "error.h"
#include "ir_util.h"
#include "passes/accuracy.h"
#include "passes/passes.h"
#include "plan.h"
#include "qparams.h"
#include "targets/target.h"

namespace jitquant {

namespace {

// Checking scripted DenseNets after each pass takes ten times what the passes take.
bool checksEachPass(const Trace& trace) {
  const char* wanted = std::getenv("JITQUANT_CHECK_EACH_PASS");
  return trace || (wanted != nullptr && std::strcmp(wanted, "1") == 0);
}

}  // namespace

class Pipeline {
 public:
  explicit Pipeline(Trace trace)
      : checks_each_pass_(checksEachPass(trace)), trace_(std::move(trace)) {}

  Program program;

  // Runs one pass after those in `after`.
  void run(const std::string& name, const std::vector<std::string>& after,
           const std::function<void(Program&)>& pass) {
    for (const std::string& other : after) {
      if (std::find(done_.begin(), done_.end(), other) == done_.end()) {
        throw PassError(name, "it ran before " + other);
      }
    }
    named(name, [&] {
      pass(program);
      if (checks_each_pass_) lint();
    });
    done_.push_back(name);
    if (!trace_) return;
    for (const Method& method : program.methods) {
      trace_(name, method.name, jit::Canonicalize(method.graph)->toString(false));
    }
  }

  // Checks every graph, once for all passes.
  void check() const {
    if (!checks_each_pass_) named(done_.back() + " or one before it", [&] { lint(); });
  }

 private:
  void lint() const {
    for (const Method& method : program.methods) method.graph->lint();
  }

  static void named(const std::string& name, const std::function<void()>& step) {
    try {
      step();
    } catch (const UserError&) {
      throw;
    } catch (const c10::Error& error) {
      throw PassError(name, error.what_without_backtrace());
    } catch (const std::exception& error) {
      throw PassError(name, error.what());
    }
  }

  bool checks_each_pass_;
  Trace trace_;
  std::vector<std::string> done_;
};

namespace {

void toNormalForm(Pipeline& pipeline, const jit::Module& model,
                  const std::vector<std::string>& methods) {
  pipeline.run("flatten", {}, [&](Program& program) {
    program = flatten(model, methods);
    program.target = &quantizedTarget();
  });
  pipeline.run("note_origins", {"flatten"}, noteOrigins);
  pipeline.run("undo_mkldnn", {"note_origins"}, undoMkldnn);
  pipeline.run("fold_attributes", {"undo_mkldnn"}, foldAttributes);
  pipeline.run("resolve_asserts", {"fold_attributes"}, resolveAsserts);
  pipeline.run("resolve_identities", {"resolve_asserts"}, resolveIdentities);
  pipeline.run("pad_nested", {"resolve_asserts"}, padNested);
  pipeline.run("unfold_attention", {"pad_nested"}, unfoldAttention);
  pipeline.run("name_weights", {"unfold_attention"}, nameWeights);
  pipeline.run("own_state", {"name_weights"}, ownState);
  pipeline.run("functionalize", {"own_state"}, functionalize);
  pipeline.run("fold_weights", {"functionalize", "own_state"}, foldWeights);
  pipeline.run("canonicalize", {"fold_attributes"}, canonicalize);
  pipeline.run("canonicalize_einsum", {"fold_attributes"}, canonicalizeEinsum);
  pipeline.run("canonicalize_linear", {"functionalize"}, canonicalizeLinear);
  pipeline.run("split_bias", {"fold_weights", "canonicalize", "canonicalize_linear"}, splitBias);
  pipeline.run("canonicalize_arithmetic", {"functionalize"}, canonicalizeArithmetic);
  pipeline.run("split_lists", {"functionalize"}, splitLists);
  pipeline.run("canonicalize_stack", {"split_lists"}, canonicalizeStack);
  pipeline.run("canonicalize_shuffle", {"functionalize"}, canonicalizeShuffle);
  pipeline.run("simplify", {"canonicalize", "functionalize"}, simplify);
}

void readPrepared(Pipeline& pipeline, const jit::Module& prepared,
                  const std::vector<std::string>& methods, std::vector<OpRecord> records) {
  pipeline.run("flatten", {}, [&](Program& program) {
    program = flatten(prepared, methods);
    program.target = &quantizedTarget();
    program.records = std::move(records);
    attachRecords(program);
  });
}

// The last step of every way through: only what the result needs moves into a fresh unit.
Result finish(Pipeline& pipeline, bool strip) {
  std::vector<std::string> methods;
  for (const Method& method : pipeline.program.methods) methods.push_back(method.name);
  listValues(pipeline.program);
  auto records = std::move(pipeline.program.records);
  pipeline.run("strip_origins", {}, [&](Program& program) {
    if (strip) stripOrigins(program);
    program = flatten(program.module, methods);
  });
  pipeline.check();
  return {pipeline.program.module, std::move(records), {}, {}, {}};
}

// Must run before the graph's values are replaced.
std::vector<InputSeen> inputsSeen(const Program& program) {
  std::vector<InputSeen> inputs;
  for (const Method& method : program.methods) {
    if (method.name != "forward") continue;
    for (const jit::Value* input : method.graph->inputs().slice(1)) {
      InputSeen seen{input->debugNameBase(), {}, -1};
      const auto found = program.observations.find(input);
      if (found != program.observations.end() && !found->second.shapes.empty()) {
        seen.shape = found->second.shapes[0];
        seen.dtype = found->second.dtypes.at(0);
      }
      inputs.push_back(std::move(seen));
    }
  }
  return inputs;
}

// For each record, whether its op is planned in int8 with qparams of its own: it rounds what it
// gives, where others move values or take the qparams of their input.
std::vector<bool> roundingOps(const Program& program) {
  std::vector<bool> rounds(program.records.size(), false);
  for (const Method& method : program.methods) {
    for (const jit::Node* node : allNodes(*method.graph)) {
      const auto index = mark(node, kOpMark);
      if (!index || method.plan->int8.count(node) == 0) continue;
      const Role role = findRow(node)->role;
      rounds[*index] =
          role == Role::kWeighted || role == Role::kObserved || role == Role::kFixedQParams;
    }
  }
  return rounds;
}

// What int8 ops of fixed range give is observed as well, and each value by each static qconfig: if
// further ops were float, the plan would observe no others.
void addSpares(Program& program) {
  for (Method& method : program.methods) {
    std::vector<jit::Value*> values;
    for (const ObservedValue& observed : method.plan->observed) values.push_back(observed.value);
    for (jit::Node* node : allNodes(*method.graph)) {
      if (method.plan->int8.count(node) == 0) continue;
      if (findRow(node)->role == Role::kFixedQParams) values.push_back(node->output());
    }
    Plan plan = *method.plan;
    plan.observed.clear();
    for (size_t i = 0; i < program.qconfigs.size(); ++i) {
      if (program.qconfigs[i].activations != Activations::kStatic) continue;
      for (jit::Value* value : values) plan.observed.push_back({value, static_cast<int64_t>(i)});
    }
    method.plan = std::make_shared<const Plan>(std::move(plan));
  }
}

// Data of the top module that its user may read there: tensors, containers and objects that no
// method reads. What a method reads is there for the method's sake, and plain values and names
// with an underscore are settings of layers.
std::vector<std::string> dataForTheUser(Program& program) {
  std::set<std::string> read;
  for (const Method& method : program.methods) {
    for (const jit::Node* node : allNodes(*method.graph)) {
      if (node->kind() != c10::prim::GetAttr) continue;
      if (const auto path = attributePath(node->output())) read.insert(*path);
    }
  }
  std::vector<std::string> names;
  const auto type = program.module.type();
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    const std::string& name = type->getAttributeName(i);
    const at::IValue& value = program.module._ivalue()->getSlot(i);
    const bool is_data = (value.isTensor() && value.toTensor().defined()) || value.isList() ||
                         value.isGenericDict() || value.isTuple() ||
                         (value.isObject() && !value.isModule());
    if (is_data && !type->is_parameter(i) && name[0] != '_' && read.count(name) == 0) {
      names.push_back(name);
    }
  }
  return names;
}

}  // namespace

Preparation::Preparation(const jit::Module& model, const std::vector<std::string>& methods,
                         const Trace& trace)
    : pipeline_(std::make_unique<Pipeline>(trace)) {
  const at::NoGradGuard no_grad;
  toNormalForm(*pipeline_, model, methods);
  ops_ = configuredOps(pipeline_->program);
}

Preparation::~Preparation() = default;

const std::vector<std::string>& Preparation::written() const { return pipeline_->program.written; }

void Preparation::configureAndFold(const std::vector<int64_t>& decisions,
                                   std::vector<ObserverPair> qconfigs) {
  Pipeline& pipeline = *pipeline_;
  pipeline.program.qconfigs = std::move(qconfigs);
  pipeline.run("configure", {"simplify"}, [&](Program& program) { configure(program, decisions); });
  pipeline.run("unfold_cells", {"configure"}, unfoldCells);
  pipeline.run("fold_conv_bn", {"configure", "canonicalize_linear"}, foldConvBn);
  pipeline.run("rewrite_conv_transpose", {"fold_conv_bn"}, rewriteConvTranspose);
  pipeline.run("rewrite_pixel_shuffle", {"fold_conv_bn", "configure"}, rewritePixelShuffle);
  pipeline.run("fold_pad", {"rewrite_conv_transpose"}, foldPad);
}

Result Preparation::finish(const std::vector<int64_t>& decisions,
                           std::vector<ObserverPair> qconfigs, const jit::Module& shape_recorder,
                           bool spares) {
  const at::NoGradGuard no_grad;
  configureAndFold(decisions, std::move(qconfigs));
  Pipeline& pipeline = *pipeline_;
  pipeline.run("plan", {"fold_pad"}, [&](Program& program) {
    listOps(program);
    plan(program);
    if (spares) addSpares(program);
  });
  pipeline.run("keep_state", {"plan"}, keepState);
  pipeline.run("insert_observers", {"plan"}, [&](Program& program) {
    insertObservers(program, shape_recorder);
    for (Method& method : program.methods) stripMarks(*method.graph);
  });
  pipeline.run("record_arguments", {"insert_observers"}, recordArguments);
  pipeline.check();
  return {pipeline.program.module, std::move(pipeline.program.records), {}, {}, {}};
}

Inspection Preparation::inspect(const std::vector<int64_t>& decisions,
                                std::vector<ObserverPair> qconfigs) {
  const at::NoGradGuard no_grad;
  configureAndFold(decisions, std::move(qconfigs));
  listOps(pipeline_->program);
  pipeline_->check();
  return Inspection::ofListed(std::move(pipeline_->program));
}

Preparation::Watched Preparation::watch(const jit::Module& shape_recorder) {
  Watched watched{pipeline_->program.module, {}};
  pipeline_->run("watch_shapes", {"simplify"}, [&](Program& program) {
    watched.observers = watchShapes(program, shape_recorder);
    for (Method& method : program.methods) stripMarks(*method.graph);
  });
  pipeline_->check();
  return watched;
}

Result convert(const jit::Module& prepared, const std::vector<std::string>& methods,
               std::vector<OpRecord> records, Form form, const std::vector<std::string>& preserved,
               const Trace& trace) {
  const at::NoGradGuard no_grad;
  Pipeline pipeline(trace);
  readPrepared(pipeline, prepared, methods, std::move(records));
  pipeline.run("restore_state", {"flatten"}, restoreState);
  pipeline.run("fold_attributes", {"restore_state"}, foldAttributes);
  pipeline.run("collect_observers", {"fold_attributes"}, [](Program& program) {
    dropArgumentRecorder(program);
    collectObservers(program);
    noteRemovedOps(program);
  });
  auto inputs = inputsSeen(pipeline.program);
  const auto data = dataForTheUser(pipeline.program);
  pipeline.run("own_state", {"collect_observers"}, ownState);
  pipeline.run("plan", {"own_state"}, plan);
  auto rounds = roundingOps(pipeline.program);
  if (form != Form::kFloat) pipeline.run("pad_groups", {"plan"}, padGroups);
  pipeline.run("insert_qdq", {"plan"}, insertQdq);
  pipeline.run("insert_dynamic_qdq", {"plan"}, insertDynamicQdq);
  pipeline.run("quantize_tables", {"plan"}, quantizeTables);
  pipeline.run("quantize_joins", {"insert_qdq"}, quantizeJoins);
  const auto finished = [&] {
    Result result = finish(pipeline, /*strip=*/true);
    result.inputs = std::move(inputs);
    result.rounds = std::move(rounds);
    for (const std::string& name : data) {
      if (!result.module.hasattr(name)) result.dropped.push_back(name);
    }
    return result;
  };
  if (form == Form::kFloat) {
    pipeline.run("note_values", {"quantize_joins"}, noteValues);
    return finished();
  }
  pipeline.run("propagate_dequantize", {"quantize_joins"}, propagateDequantize);
  pipeline.run("lower", {"propagate_dequantize"}, lower);
  pipeline.run("verify", {"lower"}, verify);
  pipeline.run("lower_dynamic", {"insert_dynamic_qdq", "verify"}, lowerDynamic);
  pipeline.run("verify_dynamic", {"lower_dynamic"}, verifyDynamic);
  pipeline.run("lower_tables", {"quantize_tables"}, lowerTables);
  pipeline.run("verify_tables", {"lower_tables"}, verifyTables);
  pipeline.run("note_shared_weights", {"verify", "verify_dynamic", "verify_tables"},
               noteSharedWeights);
  pipeline.run("fuse", {"verify"}, fuse);
  pipeline.run("chain_cats", {"fuse"}, chainCats);
  pipeline.run("fuse_sum", {"fuse", "chain_cats"}, fuseSum);
  pipeline.run("fuse_activation", {"fuse"}, fuseActivation);
  pipeline.run("restore_layout", {"fuse", "fuse_sum"}, restoreLayout);
  if (form == Form::kReference) {
    pipeline.run("use_references", {"restore_layout"}, useReferences);
    pipeline.run("note_values", {"use_references"}, noteValues);
    return finished();
  }
  pipeline.run("expand_operands", {"lower"}, expandOperands);
  pipeline.run("reuse_memory", {"restore_layout"}, reuseMemory);
  pipeline.run("note_values", {"reuse_memory"}, noteValues);
  pipeline.run("fold_prepack", {"note_values"}, foldPrepack);
  pipeline.run("freeze", {"fold_prepack"}, [&](Program& program) { freeze(program, preserved); });
  return finished();
}

Result fuseConvBn(const jit::Module& model, const std::vector<std::string>& methods,
                  const Trace& trace) {
  const at::NoGradGuard no_grad;
  Pipeline pipeline(trace);
  toNormalForm(pipeline, model, methods);
  pipeline.run("fold_conv_bn", {"simplify", "canonicalize_linear"}, foldConvBn);
  return finish(pipeline, /*strip=*/false);
}

EqualizedModel equalizeModel(const jit::Module& model, const std::vector<std::string>& methods,
                             bool unbound, const Trace& trace) {
  const at::NoGradGuard no_grad;
  Pipeline pipeline(trace);
  toNormalForm(pipeline, model, methods);
  pipeline.run("fold_conv_bn", {"simplify", "canonicalize_linear"}, foldConvBn);
  Equalized count;
  pipeline.run("equalize", {"fold_conv_bn"},
               [&](Program& program) { count = equalize(program, unbound); });
  return {finish(pipeline, /*strip=*/false).module, count.pairs, count.bounded};
}

namespace {

jit::Module writePrepared(Pipeline& pipeline) {
  for (Method& method : pipeline.program.methods) stripMarks(*method.graph);
  pipeline.check();
  return pipeline.program.module;
}

}  // namespace

WatchedMeans watchMeansOf(const jit::Module& prepared, const std::vector<std::string>& methods,
                          std::vector<OpRecord> records, const jit::Module& recorder) {
  const at::NoGradGuard no_grad;
  Pipeline pipeline(nullptr);
  readPrepared(pipeline, prepared, methods, std::move(records));
  WatchedMeans watched;
  pipeline.run("watch_means", {"flatten"}, [&](Program& program) {
    readQConfigs(program);
    dropArgumentRecorder(program);
    dropObservers(program);
    watched.recorders = watchMeans(program, recorder);
  });
  watched.module = writePrepared(pipeline);
  return watched;
}

jit::Module withCorrectedBias(const jit::Module& prepared, const std::vector<std::string>& methods,
                              std::vector<OpRecord> records, const std::vector<at::Tensor>& means,
                              const Trace& trace) {
  const at::NoGradGuard no_grad;
  Pipeline pipeline(trace);
  readPrepared(pipeline, prepared, methods, std::move(records));
  pipeline.run("correct_bias", {"flatten"}, [&](Program& program) {
    readQConfigs(program);
    correctBias(program, means);
  });
  return writePrepared(pipeline);
}

}  // namespace jitquant
