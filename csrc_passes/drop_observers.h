#pragma once

#include "program.h"

namespace jitquant {

// Takes the observers out of a prepared graph, whatever they saw.
void dropObservers(Program& program);

}  // namespace jitquant
