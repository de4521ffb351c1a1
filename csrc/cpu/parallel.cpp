#include "parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "workspace.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastssl {
namespace {

bool forked = false;

void after_fork_in_child() {
  forked = true;
  unlock_workspaces_after_fork();
}

// A thread pays for being woken (a few microseconds) with at least this many multiply-adds.
constexpr double kWorkPerThread = 1 << 18;

}  // namespace

void install_fork_guard() {
  pthread_atfork(lock_workspaces_before_fork, unlock_workspaces_after_fork, after_fork_in_child);
}

bool in_forked_process() { return forked; }

int threads_for(std::int64_t requested, double work) {
  if (!has_openmp() || forked || requested < 2) return 1;
  const double worth = std::max(1.0, work / kWorkPerThread);
  return static_cast<int>(std::min({static_cast<double>(requested), worth, 1024.0}));
}

void wait_until(const std::int64_t* counter, std::int64_t value) {
  // Matches take microseconds. More threads than cores: let the one that is waited for run.
  constexpr int kSpins = 2000;
  for (int spin = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) < value; ++spin) {
    if (spin >= kSpins) sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

int thread_in_team() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace fastssl
