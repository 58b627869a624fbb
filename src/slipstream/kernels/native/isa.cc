#include "isa.h"

#include "entry.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace slipstream {
namespace {

constexpr const char* names[] = {"portable", "avx2", "avx512"};

// The index of a name, or -1.
int find(const char* name) {
  for (int i = 0; i < 3; i++)
    if (!std::strcmp(names[i], name)) return i;
  return -1;
}

int chosen_at_start() {
  const char* wanted = std::getenv("SLIPSTREAM_ISA");
  const int best = static_cast<int>(best_isa()), named = wanted ? find(wanted) : -1;
  return named >= 0 && named <= best ? named : best;
}

std::atomic<int>& current() {
  static std::atomic<int> value{chosen_at_start()};
  return value;
}

}  // namespace

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return Isa::portable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  return avx512 ? Isa::avx512vnni : Isa::avx2;
#else
  return Isa::portable;
#endif
}

Isa isa() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

const char* isa_name(Isa isa) { return names[static_cast<int>(isa)]; }

}  // namespace slipstream

SLIPSTREAM_ENTRY int slipstream_set_isa(const char* name) {
  using namespace slipstream;
  const int wanted = name ? find(name) : chosen_at_start();
  if (wanted < 0) return -1;
  if (wanted > static_cast<int>(best_isa())) return -2;
  current().store(wanted, std::memory_order_relaxed);
  return 0;
}

SLIPSTREAM_ENTRY const char* slipstream_isa() { return slipstream::isa_name(slipstream::isa()); }
