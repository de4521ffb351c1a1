// Scratch memory that is kept between calls, because page faults cost more than the kernels that run in it.
#pragma once

#include <cstddef>

namespace fastssl {

// Borrows the calling thread's workspace for the duration of one call. Grows it if needed and throws
// std::bad_alloc (a MemoryError in Python) if it cannot. After the call a workspace above kKeptBytes is given
// back at once.
class WorkspaceLease {
 public:
  explicit WorkspaceLease(std::size_t bytes);
  ~WorkspaceLease();
  WorkspaceLease(const WorkspaceLease&) = delete;
  WorkspaceLease& operator=(const WorkspaceLease&) = delete;

  char* data() const { return data_; }

  static constexpr std::size_t kKeptBytes = std::size_t{512} << 20;

 private:
  char* data_;
};

// Frees the workspaces of all threads that are not inside a call; returns the number of bytes freed.
std::size_t release_workspaces();

// Bytes that all threads hold now.
std::size_t workspace_bytes();

// The registry's lock is held across fork, so that a child never inherits it locked.
void lock_workspaces_before_fork();
void unlock_workspaces_after_fork();

}  // namespace fastssl
