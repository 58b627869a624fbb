// Times of the handlers, written down while somebody wants them: where a step's time goes.
#pragma once

#include <chrono>
#include <cstdint>

namespace slipstream {

enum class Part : int32_t { products, feed_forward, rows, attention, sampling };

// One call. Of products and feed-forwards: `weights` read, of `in` inputs and `out` outputs together; of attention: the heads,
// and the head's size. `rows` are real ones. `bytes` are of packed weights, or of keys and values, read once. `begin`: the
// monotonic clock's nanoseconds.
struct Call {
  Part part;
  int32_t weights;
  int64_t in, out, rows, bytes, operations, begin, nanoseconds;
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
    call.nanoseconds = nanoseconds(Clock::now() - begin_);
    call.begin = nanoseconds(begin_.time_since_epoch());
    write_down(call);
  }
  Traced(const Traced&) = delete;
  Traced& operator=(const Traced&) = delete;

  Call call{};

 private:
  static int64_t nanoseconds(Clock::duration time) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
  }

  const bool on_;
  Clock::time_point begin_{};
};

}  // namespace slipstream
