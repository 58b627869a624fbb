// XLA's handler that makes arrays of zeros, of any types and shapes, without touching their memory: whole pages are given back
// to the system, which hands them out again as zeros when they are first used. A KV cache then takes the memory of the pages
// that requests have used, not of those that they might.
#include <cstdint>
#include <cstring>

#include "entry.h"
#include "xla/ffi/api/ffi.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace slipstream {
namespace {

namespace ffi = xla::ffi;

void clear(char* data, size_t size) {
#if defined(__linux__)
  // MADV_DONTNEED makes zeros of private memory without a file, which is what XLA takes from malloc.
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  char* const first = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(data) + page - 1) / page * page);
  char* const last = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(data + size) / page * page);
  if (first < last && madvise(first, static_cast<size_t>(last - first), MADV_DONTNEED) == 0) {
    std::memset(data, 0, static_cast<size_t>(first - data));
    std::memset(last, 0, static_cast<size_t>(data + size - last));
    return;
  }
#endif
  std::memset(data, 0, size);
}

ffi::Error zeros(ffi::RemainingRets results) {
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result) return result.error();
    if ((*result)->size_bytes() > 0) clear(static_cast<char*>((*result)->untyped_data()), (*result)->size_bytes());
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace slipstream

SLIPSTREAM_ENTRY XLA_FFI_Error* slipstream_ffi_zeros(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(slipstream_ffi_zeros, slipstream::zeros, xla::ffi::Ffi::Bind().RemainingRets());
