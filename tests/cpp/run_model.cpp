// run_model MODEL.pt INPUT.pt OUTPUT.pt: what a C++ program needs to run a saved model.
//
// MODEL is a TorchScript archive, INPUT a tensor written by Python's torch.save; the output, a
// tensor, is written so that Python's torch.load reads it. Nothing but libtorch is linked.

#include <ATen/core/ivalue.h>
#include <torch/csrc/api/include/torch/serialize.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

at::Tensor readTensor(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)),
                                std::istreambuf_iterator<char>());
  return torch::pickle_load(bytes).toTensor();
}

void writeTensor(const std::string& path, const at::Tensor& tensor) {
  const std::vector<char> bytes = torch::pickle_save(tensor);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: run_model MODEL.pt INPUT.pt OUTPUT.pt\n";
    return 2;
  }
  try {
    torch::jit::Module model = torch::jit::load(argv[1]);
    const c10::InferenceMode guard;
    const at::Tensor output = model.forward({readTensor(argv[2])}).toTensor();
    writeTensor(argv[3], output);
  } catch (const std::exception& error) {
    std::cerr << "run_model: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
