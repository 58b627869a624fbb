// Which instruction set the kernels use: chosen once at run time, so that one library serves every machine.
#pragma once

namespace slipstream {

enum class Isa { portable = 0, avx2 = 1, avx512vnni = 2 };

// The best set this machine has, or the one that SLIPSTREAM_ISA=portable|avx2|avx512 names (if the machine has it).
Isa isa();

// The best set this machine has, whatever the environment says.
Isa best_isa();

const char* isa_name(Isa isa);

}  // namespace slipstream

// For tests: use `name` from now on. 0: done; -1: no such set; -2: this machine lacks it. Null: back to the choice made at start.
extern "C" int slipstream_set_isa(const char* name);

// The name of the set in use.
extern "C" const char* slipstream_isa();
