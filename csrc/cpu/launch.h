// How a family's kernels come to run.
#pragma once

#include "arena.h"
#include "parallel.h"
#include "workspace.h"

namespace fastssl {
namespace FASTSSL_ISA {

// Lays the memory of kernels = make(arena) out twice, first to measure it, then in the borrowed workspace;
// then calls run(kernels, team) on each thread.
template <class Make, class Run>
void launch(int threads, const Make& make, const Run& run) {
  Arena measure(nullptr);
  make(measure);
  WorkspaceLease workspace(measure.used());
  Arena arena(workspace.data());
  const auto kernels = make(arena);
  run_team(threads, [&](Team& team) { run(kernels, team); });
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
