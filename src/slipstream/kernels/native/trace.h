// Times of the handlers, written down while somebody wants them: where a step's time goes.
#pragma once

#include <chrono>
#include <cstdint>

namespace slipstream {

enum class Part : int32_t { products, feed_forward, rows, attention, sampling };

// One call. Of products and feed-forwards: `weights` read, of `in` inputs and `out` outputs together; of attention: the heads,
// and the head's size. `rows` are real ones. `bytes` are of packed weights, or of keys and values, read once.
struct Call {
  Part part;
  int32_t weights;
  int64_t in, out, rows, bytes, operations, nanoseconds;
};

bool tracing();
void write_down(const Call& call);

// Times a handler from here to the end of the scope.
class Traced {
 public:
  using Clock = std::chrono::steady_clock;
  Traced() : on_(tracing()) {
    if (on_) begin_ = Clock::now();
  }
  ~Traced() {
    if (!on_) return;
    call.nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin_).count();
    write_down(call);
  }
  Traced(const Traced&) = delete;
  Traced& operator=(const Traced&) = delete;

  Call call{};

 private:
  const bool on_;
  Clock::time_point begin_{};
};

}  // namespace slipstream
