// Random numbers and memory for the programs beside this file.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static uint64_t random_state = 1;

// A number from 0 to count - 1 (xorshift64*).
static uint64_t draw(uint64_t count) {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (random_state * 0x2545f4914f6cdd1dULL >> 32) % count;
}

// In [-1, 1), a multiple of 2^-23.
static float draw_unit(void) { return (float)draw(1 << 24) / (1 << 23) - 1.0f; }

static void *room(size_t count, size_t size) {
  void *memory = malloc(count * size > 0 ? count * size : 1);
  if (!memory) exit(2);
  memset(memory, 0, count * size);
  return memory;
}

static double *made_hyperparameters(int64_t count, double value) {
  double *values = room((size_t)count, sizeof(double));
  for (int64_t i = 0; i < count; i++) values[i] = value * (1 + (double)draw(8) / 8);
  return values;
}
