// What memory itself costs: shared counts from many threads, first touches, reads at random.
#ifndef PM_LIMITS_MEMORY_H
#define PM_LIMITS_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/// `n` times: a get and a put-and-test of one of `mask` + 1 words (a power of two) that lie `stride`
/// words apart. Which one comes next is a step of a generator that visits each of them once in
/// `mask` + 1 steps: index = index * 5 + (2 * thread + 1), from `thread` on, modulo `mask` + 1.
void pm_limit_shared_pairs(int32_t *_Nonnull counts, size_t stride, uint32_t mask, uint32_t thread,
                           size_t n);

/// `n` times: waits until the word is even (`side` 0) or odd (1), and adds 1 to it. Two threads, one on
/// each side, hand the word's line to and fro; each step is one transfer.
void pm_limit_hand_over(uint32_t *_Nonnull word, uint32_t side, size_t n);

/// Writes a word to each 4 KiB of memory, in order. Returns how many page faults that took, as the
/// kernel counted them for this thread.
size_t pm_limit_touch(void *_Nonnull base, size_t bytes);

/// `n` reads of a word in random lines of `bytes` bytes (a multiple of 64, at most 256 GiB), each at
/// a place that depends on the word read before. pre: the memory is readable and aligned to 8.
uint64_t pm_limit_chase(const void *_Nonnull base, size_t bytes, uint64_t seed, size_t n);

#endif
