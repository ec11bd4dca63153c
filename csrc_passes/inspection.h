#pragma once
// A copy of a float, prepared or converted model in which the values of its listed ops are known,
// for jitquant.numeric_suite.

#include <string>
#include <vector>

#include "program.h"

namespace jitquant {

// A value that a tap looks at.
struct Tapped {
  std::string tap;      // the submodule that every such value passes through
  int64_t record = -1;  // index into Inspection::records of the op that computes it, or -1:
  int64_t input = -1;   // of the argument of forward that it is, self not counted
  bool rounds = false;  // it is that op's or input's value just quantized, for the ops that read it
  bool written = false;  // an op writes its memory in place afterwards
};

class Inspection {
 public:
  // Of a model that convert made, with the records that it returned.
  static Inspection ofConverted(const jit::Module& converted,
                                const std::vector<std::string>& methods,
                                std::vector<OpRecord> records);
  // Of a prepared model, without its observers, in the state that the float model had.
  static Inspection ofPrepared(const jit::Module& prepared, const std::vector<std::string>& methods,
                               std::vector<OpRecord> records);
  // Of a program in the normal form whose ops are listed.
  static Inspection ofListed(Program program);

  const std::vector<OpRecord>& records() const { return program_.records; }
  // For each record its weight as the op uses it: float, or quantized. Undefined tensors for ops
  // without one, and where it is no constant.
  std::vector<at::Tensor> weights() const;

  struct Watched {
    jit::Module module;
    std::vector<Tapped> values;
  };
  // The model with a copy of `tap`, a module that takes and returns a tensor, at every value of an
  // op, every tensor argument of forward and every value that is quantized. To be called once.
  Watched watch(const jit::Module& tap);

 private:
  Program program_;
  std::vector<std::vector<jit::Node*>> nodes_;  // of each record
};

}  // namespace jitquant
