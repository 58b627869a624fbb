// exp and tanh of vectors, written once over a Simd type. To be included after one of the simd_*.h.
#pragma once

namespace slipstream {
namespace {

// exp(x) to about 1 ulp; below -80 exp(-80), so that no result is a denormal; above 80 exp(80). NaN stays NaN.
// Source: the polynomial of expf in S. Moshier's Cephes.
template <class S>
inline typename S::F exponential(typename S::F x) {
  x = S::min(S::set1(80.0f), S::max(S::set1(-80.0f), x));
  const typename S::F n = S::round(S::mul(x, S::set1(1.44269504088896341f)));
  typename S::F r = S::fma(n, S::set1(-0.693359375f), x);
  r = S::fma(n, S::set1(2.12194440e-4f), r);
  typename S::F p = S::set1(1.9875691500e-4f);
  p = S::fma(p, r, S::set1(1.3981999507e-3f));
  p = S::fma(p, r, S::set1(8.3334519073e-3f));
  p = S::fma(p, r, S::set1(4.1665795894e-2f));
  p = S::fma(p, r, S::set1(1.6666665459e-1f));
  p = S::fma(p, r, S::set1(5.0000001201e-1f));
  p = S::fma(p, S::mul(r, r), r);
  return S::scale2(S::add(p, S::set1(1.0f)), n);
}

// tanh(x) with an absolute error of about 1e-7.
template <class S>
inline typename S::F hyperbolic_tangent(typename S::F x) {
  const typename S::F one = S::set1(1.0f), twice = exponential<S>(S::add(x, x));
  return S::sub(one, S::div(S::set1(2.0f), S::add(twice, one)));
}

}  // namespace
}  // namespace slipstream
