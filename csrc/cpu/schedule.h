// Who works on which pair of blocks when, so that no two threads ever add to the same rows and every sum is
// formed in the same order. Nothing here depends on the number of threads: the same input gives the same bits
// on any number.
#pragma once

#include "parallel.h"
#include "tile.h"

namespace fastssl {
namespace FASTSSL_ISA {

// All unordered pairs of blocks, each visited once. Blocks are grouped into `teams`; the teams play a
// round-robin tournament (circle method): the matches of one round are disjoint, so any thread may take any
// match, and a barrier separates rounds. With an odd number of teams the one that rests in a round plays
// itself, otherwise all do in a last round.
class Tournament {
 public:
  explicit Tournament(std::int64_t blocks) : blocks_(blocks) {
    // Larger teams reuse what is in cache, smaller ones fill more threads. Take the size whose matches divide
    // best over 2, 4, 8 and 16 threads.
    double best = 0;
    for (std::int64_t size = 1; size <= 4 && size <= blocks; ++size) {
      const std::int64_t teams = ceil_div(blocks, size), even = teams + (teams & 1);
      double cost = 0;
      for (std::int64_t threads = 2; threads <= 16; threads *= 2) {
        cost += static_cast<double>((even - 1) * ceil_div(even / 2, threads) * size * size * threads);
      }
      if (size == 1 || cost < best) {
        best = cost;
        team_size_ = size;
        teams_ = teams;
      }
    }
  }

  // Calls match(first, last, other_first, other_last) for ranges of blocks that meet each other, or, where
  // both ranges are the same, within one range.
  template <class Match>
  void play(Team& threads, const Match& match) const {
    const std::int64_t even = teams_ + (teams_ & 1), circle = even - 1, tables = even / 2;
    const bool odd = (teams_ & 1) != 0;
    const auto meet = [&](std::int64_t a, std::int64_t b) {
      const std::int64_t low = a < b ? a : b, high = a < b ? b : a;
      match(first(low), first(low + 1), first(high), first(high + 1));
    };
    for (std::int64_t round = 0; round < circle; ++round) {
      threads.for_each(tables, [&](std::int64_t table) {
        if (table < tables - 1) {
          meet((round + table + 1) % circle, (round + circle - table - 1) % circle);
        } else {
          meet(round, odd ? round : even - 1);  // last, because a team that plays itself has less to do
        }
      });
    }
    if (!odd) threads.for_each(teams_, [&](std::int64_t team) { meet(team, team); });
  }

 private:
  std::int64_t first(std::int64_t team) const {
    return team * team_size_ < blocks_ ? team * team_size_ : blocks_;
  }

  std::int64_t blocks_, team_size_ = 1, teams_ = 1;
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
