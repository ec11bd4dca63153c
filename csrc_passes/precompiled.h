// The headers of torch that most files include, parsed once: setup.py compiles this file first and
// gives it to every other compilation. Files still include what they use.

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
