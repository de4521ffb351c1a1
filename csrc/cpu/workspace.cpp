#include "workspace.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "pages.h"

namespace fastssl {
namespace {

struct Workspace;

struct Registry {
  std::mutex mutex;
  std::vector<Workspace*> all;
};

// Never destroyed: threads may end after static destructors have run.
Registry& registry() {
  static Registry* instance = new Registry;
  return *instance;
}

struct Workspace {
  char* data = nullptr;
  std::size_t bytes = 0;
  bool in_use = false;  // guarded by the registry's mutex, like everything here

  Workspace() {
    std::lock_guard<std::mutex> lock(registry().mutex);
    registry().all.push_back(this);
  }
  ~Workspace() {
    std::lock_guard<std::mutex> lock(registry().mutex);
    auto& all = registry().all;
    all.erase(std::remove(all.begin(), all.end(), this), all.end());
    free_memory();
  }
  void free_memory() {
    std::free(data);
    data = nullptr;
    bytes = 0;
  }
};

thread_local Workspace workspace;

}  // namespace

WorkspaceLease::WorkspaceLease(std::size_t bytes) {
  Workspace& mine = workspace;
  std::lock_guard<std::mutex> lock(registry().mutex);
  if (bytes > mine.bytes) {
    mine.free_memory();
    const bool large = bytes >= 2 * kHugePage;
    const std::size_t alignment = large ? kHugePage : 4096;
    if (bytes > SIZE_MAX - alignment) throw std::bad_alloc();
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, rounded) != 0) throw std::bad_alloc();
    prefer_huge_pages(memory, rounded);
    mine.data = static_cast<char*>(memory);
    mine.bytes = rounded;
  }
  mine.in_use = true;
  data_ = mine.data;
}

WorkspaceLease::~WorkspaceLease() {
  Workspace& mine = workspace;
  std::lock_guard<std::mutex> lock(registry().mutex);
  mine.in_use = false;
  if (mine.bytes > kKeptBytes) mine.free_memory();
}

std::size_t release_workspaces() {
  std::lock_guard<std::mutex> lock(registry().mutex);
  std::size_t freed = 0;
  for (Workspace* each : registry().all) {
    if (each->in_use) continue;
    freed += each->bytes;
    each->free_memory();
  }
  return freed;
}

std::size_t workspace_bytes() {
  std::lock_guard<std::mutex> lock(registry().mutex);
  std::size_t held = 0;
  for (Workspace* each : registry().all) held += each->bytes;
  return held;
}

void lock_workspaces_before_fork() { registry().mutex.lock(); }

void unlock_workspaces_after_fork() { registry().mutex.unlock(); }

}  // namespace fastssl
