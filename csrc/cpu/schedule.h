// Who works on which pair of blocks when, so that no two threads ever add to the same rows and every sum is
// formed in the same order. Only who does what depends on the number of threads: the same input gives the
// same bits on any number.
#pragma once

#include "pack.h"
#include "parallel.h"

namespace fastssl {
namespace FASTSSL_ISA {

// All unordered pairs of blocks, each visited once, every block in one pair at a time.
//
// Blocks are grouped into teams, because a match of s by s blocks loads 2 s of them into the cache for s^2
// pairs. The teams play a round-robin tournament (circle method): the matches of one round are disjoint, and
// every team plays one. With an odd number of teams the one that rests in a round plays itself, otherwise all
// do in a last round. In a match the home members take turns, each against every member of the other team, so
// that every block has its s meetings of the round in a fixed order: member i meets member j as its j-th, who
// meets it as its i-th.
//
// The work is drawn in this order, and each pair waits until its blocks have their earlier meetings behind
// them. No barrier: a round need not divide by the threads.
class Tournament {
 public:
  Tournament(std::int64_t blocks, int threads, Arena& arena)
      : blocks_(blocks), met_(arena.take<Met>(blocks)) {
    // Large teams while some ten are left to play each other.
    constexpr std::int64_t kTeams = 10, kLargestTeam = 8;
    const std::int64_t size = blocks / kTeams;
    team_size_ = size < 1 ? 1 : size < kLargestTeam ? size : kLargestTeam;
    teams_ = ceil_div(blocks, team_size_);
    // Whole matches keep a thread's cache warm; where these are too few, threads follow each other through a
    // match.
    constexpr std::int64_t kMatchesPerThread = 2;
    by_match_ = (teams_ + 1) / 2 >= kMatchesPerThread * threads;
  }

  // Before play(), for every block, and finished on all threads.
  void reset(std::int64_t block) const { met_[block].count = 0; }

  // Calls meet(a, b) for each pair of blocks a <= b.
  template <class Meet>
  void play(Team& threads, const Meet& meet) const {
    const std::int64_t even = teams_ + (teams_ & 1), circle = even - 1, tables = even / 2;
    // The last matches are cut into their members' turns too, so that threads end at the same time.
    const std::int64_t matches = teams_ * (teams_ + 1) / 2, whole = by_match_ ? matches - tables : 0;
    threads.for_each(whole + (matches - whole) * team_size_, [&](std::int64_t drawn) {
      const bool is_whole = drawn < whole;
      const std::int64_t match = is_whole ? drawn : whole + (drawn - whole) / team_size_;
      const std::int64_t first = is_whole ? 0 : (drawn - whole) % team_size_;
      const std::int64_t last = is_whole ? team_size_ : first + 1;
      const std::int64_t round = match / tables < circle ? match / tables : circle;
      const std::int64_t table = match - round * tables;
      std::int64_t home = (round + table + 1) % circle, away = (round + circle - table - 1) % circle;
      if (round == circle) {
        home = away = table;
      } else if (table == tables - 1) {
        home = round;  // last, because a team that plays itself has less to do
        away = teams_ == even ? even - 1 : round;
      }
      for (std::int64_t i = first; i < last; ++i) {
        for (std::int64_t j = home == away ? i : 0; j < team_size_; ++j)
          meet_in_order(round * team_size_, home, i, away, j, meet);
      }
    });
  }

 private:
  struct alignas(kCacheLine) Met {
    std::int64_t count;  // meetings that the block has behind it
  };

  // The last team may lack members; those who would have met them count a meeting all the same.
  template <class Meet>
  void meet_in_order(std::int64_t before, std::int64_t home, std::int64_t i, std::int64_t away,
                     std::int64_t j, const Meet& meet) const {
    const std::int64_t a = home * team_size_ + i, b = away * team_size_ + j;
    if (a < blocks_) wait_until(&met_[a].count, before + j);
    if (b < blocks_) wait_until(&met_[b].count, before + i);
    if (a < blocks_ && b < blocks_) meet(a < b ? a : b, a < b ? b : a);
    if (a < blocks_) __atomic_store_n(&met_[a].count, before + j + 1, __ATOMIC_RELEASE);
    if (b < blocks_) __atomic_store_n(&met_[b].count, before + i + 1, __ATOMIC_RELEASE);
  }

  std::int64_t blocks_, team_size_, teams_;
  bool by_match_;
  Met* met_;
};

// The pairs (row block, chunk of column blocks) of a rectangle. Few row blocks get several chunks each, whose
// partial results are added up afterwards, so that there is work for many threads.
struct Rectangle {
  std::int64_t row_blocks, col_blocks, chunks;

  Rectangle(std::int64_t rows, std::int64_t cols) : row_blocks(rows), col_blocks(cols) {
    constexpr std::int64_t kTasks = 32, kLeastBlocks = 4;
    const std::int64_t wanted = ceil_div(kTasks, rows), possible = ceil_div(cols, kLeastBlocks);
    chunks = wanted < possible ? wanted : possible;
  }

  // Calls task(row block, chunk, first column block, last) with chunk in [0, chunks).
  template <class Task>
  void run(Team& threads, const Task& task) const {
    threads.for_each(row_blocks * chunks, [&](std::int64_t t) {
      const std::int64_t chunk = t % chunks;
      task(t / chunks, chunk, chunk * col_blocks / chunks, (chunk + 1) * col_blocks / chunks);
    });
  }
};

}  // namespace FASTSSL_ISA
}  // namespace fastssl
