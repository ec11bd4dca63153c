// The Python face of the passes. Checks nothing that Python checked already; turns errors.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/api/module.h>

#include "dynamic.h"
#include "error.h"
#include "float_ops.h"
#include "fused_float.h"
#include "ir_util.h"
#include "namespaces.h"
#include "op_table.h"
#include "packed_weights.h"
#include "pipeline.h"
#include "plan_draft.h"
#include "targets/engines.h"
#include "targets/reference.h"
#include "targets/target.h"

namespace py = pybind11;

namespace jitquant {

namespace {

py::object pythonError() { return py::module_::import("jitquant.errors").attr("JitQuantError"); }

// Lets torch's C++ warnings reach Python's warnings module instead of stderr.
template <typename Function>
auto withPythonWarnings(const Function& function) {
  torch::PyWarningHandler handler;
  try {
    return function();
  } catch (...) {
    handler.set_in_exception();
    throw;
  }
}

std::vector<ObserverPair> observerPairs(
    const std::vector<std::pair<jit::Module, jit::Module>>& qconfigs) {
  std::vector<ObserverPair> pairs;
  for (const auto& [activation, weight] : qconfigs) {
    pairs.push_back(ObserverPair::of(activation, weight));
  }
  return pairs;
}

struct SupportedOp {
  std::string op, role, int8_op, relu_op;
  double fixed_scale;
  int64_t fixed_zero_point;
};

std::vector<SupportedOp> supportedOps() {
  std::vector<SupportedOp> ops;
  for (const OpRow& row : opTable()) {
    SupportedOp op{row.name, roleName(row.role), "", "", row.fixed_scale, row.fixed_zero_point};
    if (row.role == Role::kRecurrent) {
      op.int8_op = quantizedTarget().findDynamic(row.name, Activations::kDynamic)->op;
    } else {
      const Int8Row* int8 = quantizedTarget().find(row);
      op.int8_op = int8->op;
      op.relu_op = int8->relu_op;
    }
    ops.push_back(std::move(op));
  }
  return ops;
}

bool equal(const at::IValue& a, const at::IValue& b) {
  if (!a.isTensor() || !b.isTensor()) return a == b;
  const at::Tensor &first = a.toTensor(), &second = b.toTensor();
  if (!first.defined() || !second.defined()) return first.defined() == second.defined();
  return first.dtype() == second.dtype() && at::equal(first, second);
}

// Whether two modules have equal attributes, in the same order. Submodules are never equal.
bool sameAttributes(const jit::Module& one, const jit::Module& other) {
  const auto a = one.type(), b = other.type();
  if (a->numAttributes() != b->numAttributes()) return false;
  for (size_t i = 0; i < a->numAttributes(); ++i) {
    if (a->getAttributeName(i) != b->getAttributeName(i)) return false;
    if (!equal(one._ivalue()->getSlot(i), other._ivalue()->getSlot(i))) return false;
  }
  return true;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const UserError& error) {
      py::set_error(pythonError(), error.what());
    } catch (const PassError& error) {
      py::set_error(pythonError(), error.what());
    }
  });

  py::class_<OpRecord>(m, "OpRecord")
      .def(py::init<>())
      .def_readwrite("method", &OpRecord::method)
      .def_readwrite("kind", &OpRecord::kind)
      .def_readwrite("path", &OpRecord::path)
      .def_readwrite("source", &OpRecord::source)
      .def_readwrite("qconfig", &OpRecord::qconfig)
      .def_readwrite("int8", &OpRecord::int8)
      .def_readwrite("reason", &OpRecord::reason)
      .def_readwrite("part_of", &OpRecord::part_of)
      .def_readwrite("value_kind", &OpRecord::value_kind)
      .def_readwrite("value_nodes", &OpRecord::value_nodes);

  py::class_<Result>(m, "Result")
      .def_readonly("module", &Result::module)
      .def_readonly("records", &Result::records)
      .def_readonly("inputs", &Result::inputs)
      .def_readonly("dropped", &Result::dropped)
      .def_readonly("rounds", &Result::rounds);

  py::enum_<Form>(m, "Form")
      .value("INT8", Form::kInt8)
      .value("FLOAT", Form::kFloat)
      .value("REFERENCE", Form::kReference);

  py::class_<InputSeen>(m, "InputSeen")
      .def_readonly("name", &InputSeen::name)
      .def_readonly("shape", &InputSeen::shape)
      .def_readonly("dtype", &InputSeen::dtype);

  py::class_<SupportedOp>(m, "SupportedOp")
      .def_readonly("op", &SupportedOp::op)
      .def_readonly("role", &SupportedOp::role)
      .def_readonly("int8_op", &SupportedOp::int8_op)
      .def_readonly("relu_op", &SupportedOp::relu_op)
      .def_readonly("fixed_scale", &SupportedOp::fixed_scale)
      .def_readonly("fixed_zero_point", &SupportedOp::fixed_zero_point);

  py::class_<Engine>(m, "Engine")
      .def_readonly("name", &Engine::name)
      .def_readonly("sums_in_16_bits", &Engine::sums_in_16_bits)
      .def_readonly("weight_zero_points", &Engine::weight_zero_points)
      .def_readonly("float16_weights", &Engine::float16_weights)
      .def_readonly("fuses_layers", &Engine::fuses_layers)
      .def("problem_of", &Engine::problemOf, py::arg("row"));

  py::class_<FloatOp>(m, "FloatOp")
      .def_readonly("op", &FloatOp::name)
      .def_readonly("reason", &FloatOp::reason);

  py::class_<ConfiguredOp>(m, "ConfiguredOp")
      .def_readonly("method", &ConfiguredOp::method)
      .def_readonly("kind", &ConfiguredOp::kind)
      .def_readonly("written", &ConfiguredOp::written)
      .def_readonly("path", &ConfiguredOp::path)
      .def_readonly("source", &ConfiguredOp::source)
      .def_readonly("origin", &ConfiguredOp::origin);

  py::class_<Preparation::Watched>(m, "Watched")
      .def_readonly("module", &Preparation::Watched::module)
      .def_readonly("observers", &Preparation::Watched::observers);

  py::class_<Preparation>(m, "Preparation")
      .def(py::init([](const jit::Module& model, const std::vector<std::string>& methods,
                       const Trace& trace) {
             return withPythonWarnings(
                 [&] { return std::make_unique<Preparation>(model, methods, trace); });
           }),
           py::arg("model"), py::arg("methods"), py::arg("trace"))
      .def_property_readonly("ops", &Preparation::ops)
      .def_property_readonly("written", &Preparation::written)
      .def(
          "finish",
          [](Preparation& self, const std::vector<int64_t>& decisions,
             const std::vector<std::pair<jit::Module, jit::Module>>& qconfigs,
             const jit::Module& shape_recorder, bool spares) {
            return withPythonWarnings([&] {
              return self.finish(decisions, observerPairs(qconfigs), shape_recorder, spares);
            });
          },
          py::arg("decisions"), py::arg("qconfigs"), py::arg("shape_recorder"), py::arg("spares"))
      .def("watch", &Preparation::watch, py::arg("shape_recorder"))
      .def(
          "inspect",
          [](Preparation& self, const std::vector<int64_t>& decisions,
             const std::vector<std::pair<jit::Module, jit::Module>>& qconfigs) {
            return withPythonWarnings(
                [&] { return self.inspect(decisions, observerPairs(qconfigs)); });
          },
          py::arg("decisions"), py::arg("qconfigs"));

  py::class_<Tapped>(m, "Tapped")
      .def_readonly("tap", &Tapped::tap)
      .def_readonly("record", &Tapped::record)
      .def_readonly("input", &Tapped::input)
      .def_readonly("rounds", &Tapped::rounds)
      .def_readonly("written", &Tapped::written);

  py::class_<Inspection::Watched>(m, "WatchedValues")
      .def_readonly("module", &Inspection::Watched::module)
      .def_readonly("values", &Inspection::Watched::values);

  py::class_<Inspection>(m, "Inspection")
      .def_property_readonly("records", &Inspection::records)
      .def("weights", &Inspection::weights)
      .def("watch", &Inspection::watch, py::arg("tap"));

  m.attr("OBSERVER_PREFIX") = kObserverPrefix;
  m.attr("ARGUMENT_RECORDER") = kArgumentRecorder;
  m.attr("LEFT_FLOAT") = kLeftFloat;
  m.attr("FUSED_FLOAT") = kFusedFloat;
  m.attr("NO_RULE") = kNoRule;
  m.def(
      "reference_unit",
      [](const std::string& kernels) {
        return referenceUnit(kernels == "qnnpack"  ? Kernels::kQnnpack
                             : kernels == "onednn" ? Kernels::kOnednn
                                                   : Kernels::kFbgemm);
      },
      py::arg("kernels"));
  m.def(
      "copy_attributes",
      [](const jit::Module& source, const jit::Module& target) {
        for (size_t i = 0; i < source.type()->numAttributes(); ++i) {
          target._ivalue()->setSlot(i, source._ivalue()->getSlot(i));
        }
      },
      py::arg("source"), py::arg("target"));
  m.def("same_attributes", &sameAttributes, py::arg("one"), py::arg("other"));
  m.def(
      "observers_of_not_finite",
      [](const jit::Module& prepared) {
        std::vector<std::string> names;
        for (const auto& child : prepared.named_children()) {
          const bool counts = isObserverName(child.name) && child.value.hasattr("saw_nan");
          if (counts &&
              (child.value.attr("saw_nan").toBool() || child.value.attr("saw_inf").toBool()))
            names.push_back(child.name);
        }
        return names;
      },
      py::arg("prepared"));
  m.def("packed_for", &packedFor, py::arg("module"));
  m.def("drop_packed", &dropPacked, py::arg("module"));
  m.def("take_packed", &takePacked, py::arg("source"), py::arg("target"), py::arg("names"));
  m.def("namespaces_of", &namespacesOf, py::arg("module"));
  m.def("supported_ops", &supportedOps);
  m.def("engines", &engines);
  m.def("float_ops", &floatOps);
  m.attr("FLOAT16_WEIGHT") = kFloat16Weight;
  m.attr("NEVER_RAN") = kNeverRan;
  m.def(
      "convert",
      [](const jit::Module& prepared, const std::vector<std::string>& methods,
         const std::vector<OpRecord>& records, Form form, const std::vector<std::string>& preserved,
         const Trace& trace) {
        return withPythonWarnings(
            [&] { return convert(prepared, methods, records, form, preserved, trace); });
      },
      py::arg("prepared"), py::arg("methods"), py::arg("records"), py::arg("form"),
      py::arg("preserved"), py::arg("trace"));
  m.def("inspect_prepared", &Inspection::ofPrepared, py::arg("prepared"), py::arg("methods"),
        py::arg("records"));
  m.def("inspect_converted", &Inspection::ofConverted, py::arg("converted"), py::arg("methods"),
        py::arg("records"));
  m.def(
      "equalize",
      [](const jit::Module& model, const std::vector<std::string>& methods, bool unbound,
         const Trace& trace) {
        const EqualizedModel equalized =
            withPythonWarnings([&] { return equalizeModel(model, methods, unbound, trace); });
        return std::make_tuple(equalized.module, equalized.pairs, equalized.bounded);
      },
      py::arg("model"), py::arg("methods"), py::arg("unbound"), py::arg("trace"));
  m.def(
      "watch_means",
      [](const jit::Module& prepared, const std::vector<std::string>& methods,
         const std::vector<OpRecord>& records, const jit::Module& recorder) {
        const WatchedMeans watched = watchMeansOf(prepared, methods, records, recorder);
        return std::make_pair(watched.module, watched.recorders);
      },
      py::arg("prepared"), py::arg("methods"), py::arg("records"), py::arg("recorder"));
  m.def("correct_bias", &withCorrectedBias, py::arg("prepared"), py::arg("methods"),
        py::arg("records"), py::arg("means"), py::arg("trace"));
  m.def("fuse_conv_bn", &fuseConvBn, py::arg("model"), py::arg("methods"), py::arg("trace"));
}

}  // namespace jitquant
