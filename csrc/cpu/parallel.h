// Threads. One parallel region per call; inside it a team walks through phases that end in a barrier.
#pragma once

#include <cstdint>

namespace fastssl {

// Installs the fork handlers. Call once, when the module is imported.
void install_fork_guard();

// True in a process that was forked from one that had imported this module. OpenMP's threads do not survive a
// fork and GNU's runtime waits for them forever, so such a process never enters a parallel region.
bool in_forked_process();

// The number of threads that a call may use: what the caller asks for, unless OpenMP is missing, this is a
// forked process, or `work` (multiply-adds) is so small that waking threads would cost more than they save.
int threads_for(std::int64_t requested, double work);

// Waits until the counter has reached the value; what was written before it was raised is then visible.
void wait_until(const std::int64_t* counter, std::int64_t value);

bool has_openmp();
int max_threads();
int thread_in_team();

// State that a team shares; lives on the stack of the calling thread.
struct TeamShared {
  std::int64_t counter[2] = {0, 0};
};

// One thread's view of its team.
class Team {
 public:
  Team(TeamShared* shared, int thread) : shared_(shared), thread_(thread) {}

  int thread() const { return thread_; }

  // Runs body(i) for each i in [0, count), in any order, on whichever thread is free, then waits for all.
  // Every thread of the team must make the same sequence of calls. The two counters take turns: while one is
  // drawn from, the other, which no thread can be using any more, is reset for the next phase.
  template <class Body>
  void for_each(std::int64_t count, const Body& body) {
    std::int64_t* drawn = &shared_->counter[phase_ & 1];
    if (thread_ == 0) __atomic_store_n(&shared_->counter[(phase_ & 1) ^ 1], 0, __ATOMIC_RELAXED);
    for (;;) {
      const std::int64_t i = __atomic_fetch_add(drawn, 1, __ATOMIC_RELAXED);
      if (i >= count) break;
      body(i);
    }
    barrier();
    ++phase_;
  }

 private:
  static void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
  }

  TeamShared* shared_;
  int thread_;
  int phase_ = 0;
};

// Calls body(team) on `threads` threads, 1 <= threads. The body must not throw.
template <class Body>
void run_team([[maybe_unused]] int threads, const Body& body) {
  TeamShared shared;
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      Team team(&shared, thread_in_team());
      body(team);
    }
    return;
  }
#endif
  Team team(&shared, 0);
  body(team);
}

}  // namespace fastssl
