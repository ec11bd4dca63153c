// strip_origins: the finished graph no longer says where in the user's source it came from.
//
// Before:
//   %y = quantized::conv2d(...), scope: layer1.0.conv1 # /home/me/resnet.py:92:15
// After:
//   %y = quantized::conv2d(...)
//
// Needs:  every other pass. The same places, without directories, are in the coverage records.
// Leaves: a file that names no path of the machine that made it.

#include "ir_util.h"
#include "passes/passes.h"

namespace jitquant {

void stripOrigins(Program& program) {
  // torch's interpreter cannot run aten::warn from a source without a file name.
  const auto source =
      std::make_shared<jit::Source>(std::string_view(""), "<converted>", /*starting_line_no=*/0);
  const jit::SourceRange nowhere(source, 0, 0);
  for (Method& method : program.methods) {
    stripMarks(*method.graph);
    for (jit::Node* node : allNodes(*method.graph)) {
      node->setSourceRange(nowhere);
      setModulePath(node, "");
    }
  }
}

}  // namespace jitquant
