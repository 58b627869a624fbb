"""Native CPU kernels in C++, called through XLA's FFI. Where they could not be built, `library.reason()` says why."""
