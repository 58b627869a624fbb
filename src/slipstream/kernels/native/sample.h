// Draws a token for each row of logits: the best, or one of those that top_k, top_p and min_p leave, by Gumbel's method
// (Gumbel 1954; Maddison et al. 2014): the best of logits / temperature plus noise. A token's noise is a hash of its row's key and
// its id, so a row's token depends on nothing but the row.
#pragma once

#include <cstdint>

namespace slipstream {

// What a row asks for. Temperature 0: the best logit, and nothing else is looked at. top_k 0, top_p 1, min_p 0: not wanted.
struct Wish {
  float temperature, top_p, min_p;
  int32_t top_k;
  uint32_t key[2];
};

// The key of a seed, high word first, at a position: Threefry-2x32 with 20 rounds (Salmon et al. 2011) of (0, position), which is
// jax.random.fold_in.
void noise_key(const uint32_t seed[2], int32_t position, uint32_t key[2]);

// The token of one row of `vocab` logits; `scratch` has room for as many floats, twice. Ties go to the lowest id. A row without
// any number gives 0.
using Draw = int32_t (*)(const float* logits, int64_t vocab, const Wish& wish, float* scratch);

extern const Draw kPortableDraw;
#if defined(__x86_64__)
extern const Draw kAvx2Draw, kAvx512Draw;
#endif

// Tokens of `count` rows [count, vocab].
void sample(const float* logits, int64_t count, int64_t vocab, const Wish* wishes, int32_t* tokens);

}  // namespace slipstream
