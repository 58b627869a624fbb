// Marks a function that is called from outside of the library: all others are hidden.
#pragma once

#define SLIPSTREAM_ENTRY extern "C" __attribute__((visibility("default")))
