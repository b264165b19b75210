// How many threads a step gets. On an idle machine they share the work well; where other programs want the cores, every
// wait for a thread that is not running costs milliseconds, and one thread is up to forty times faster than two. So both
// are timed. The result of a step does not depend on it.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>

class Pace {
 public:
  // Measured on idle cores: at 3 MB a second thread costs as much as it helps, at 9 MB it saves a third, from 20 MB on 0.4.
  static constexpr int64_t BYTES_PER_THREAD = 4 << 20;

  // Calls work(threads) for a step that reads so many bytes.
  template <class Work>
  void run(int64_t most, int64_t bytes, Work work) {
    const int64_t threads = std::min(most, bytes / BYTES_PER_THREAD);
    if (threads <= 1) return work(1);
    const bool faster = seconds[0] == 0 || seconds[1] <= seconds[0];
    const bool several = faster != (left == 0);  // the faster way, or, when it is time, the other
    const auto begin = std::chrono::steady_clock::now();
    work(several ? threads : 1);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    double &known = seconds[several], now = took.count() / (double)bytes;
    known = known > 0 ? 0.5 * known + 0.5 * now : now;
    if (left-- > 0) return;
    // a look at the slower way costs a twentieth of the time until the next one
    left = 32 + (int64_t)std::min(2000.0, 20 * std::max(seconds[0], seconds[1]) / std::min(seconds[0], seconds[1]));
  }

 private:
  double seconds[2] = {0, 0};  // per byte with one thread and with several, 0 if not known
  int64_t left = 2;            // steps until the other way is looked at
};
