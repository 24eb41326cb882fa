// What is measured of an update, in the pass over the parameters that makes it, block by block.
//
// Sums run over 16 lanes within a block and in double precision over the blocks: the same bits with every LANES.

enum { BLOCK = 512, VECTORS = 16 / LANES };  // floats of a block: all arrays of one fit the first cache

// Sums of products, over the parameters of a network.
enum products {
  GRADIENT_GRADIENT,
  PREVIOUS_PREVIOUS,  // of the gradient of the mini-batch before
  GRADIENT_PREVIOUS,
  UPDATE_UPDATE,
  GRADIENT_UPDATE,
  MOVED_MOVED,  // of the displacement
  LAST_LAST,    // of the displacement of the action before
  MOVED_LAST,
  WEIGHT_WEIGHT,
  PRODUCTS,
};

struct measures {
  float *previous_gradient, *start, *previous_displacement;  // of the network, laid out like its parameters
  int is_first, is_last;                                     // mini-batch of its action
  double sums[PRODUCTS];
};

INLINE void add_product(floats sum[VECTORS], int j, floats a, floats b) { sum[j] = fmadd(a, b, sum[j]); }

// 16 floats from `i` on, of which `left` are there.
INLINE void add_update(floats sums[MOVED_MOVED][VECTORS], const float *gradient, const float *weights,
                       const float *before, float *previous, int64_t i, int64_t left) {
  UNROLL for (int j = 0; j < VECTORS; j++, i += LANES, left -= LANES) {
    const floats g = load_part(gradient + i, left), p = load_part(previous + i, left);
    const floats u = load_part(weights + i, left) - load_part(before + i, left);
    store_part(previous + i, g, left);
    add_product(sums[GRADIENT_GRADIENT], j, g, g);
    add_product(sums[PREVIOUS_PREVIOUS], j, p, p);
    add_product(sums[GRADIENT_PREVIOUS], j, g, p);
    add_product(sums[UPDATE_UPDATE], j, u, u);
    add_product(sums[GRADIENT_UPDATE], j, g, u);
  }
}

// A block: its gradient, which becomes the previous one, and its weights after the update and before it.
KEEP_OUT void measure_update(struct measures *measures, const float *gradient, const float *weights,
                             const float *before, float *previous, int64_t count) {
  floats sums[MOVED_MOVED][VECTORS] = {0};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) add_update(sums, gradient, weights, before, previous, i, 16);
  if (i < count) add_update(sums, gradient, weights, before, previous, i, count - i);
  UNROLL for (int k = 0; k < MOVED_MOVED; k++) measures->sums[k] += (double)sum_of_16(sums[k]);
}

INLINE void add_displacement(floats sums[PRODUCTS - MOVED_MOVED][VECTORS], const float *weights, const float *start,
                             float *previous, int64_t i, int64_t left) {
  UNROLL for (int j = 0; j < VECTORS; j++, i += LANES, left -= LANES) {
    const floats w = load_part(weights + i, left), last = load_part(previous + i, left);
    const floats moved = w - load_part(start + i, left);
    store_part(previous + i, moved, left);
    add_product(sums[MOVED_MOVED - MOVED_MOVED], j, moved, moved);
    add_product(sums[LAST_LAST - MOVED_MOVED], j, last, last);
    add_product(sums[MOVED_LAST - MOVED_MOVED], j, moved, last);
    add_product(sums[WEIGHT_WEIGHT - MOVED_MOVED], j, w, w);
  }
}

// A block at the end of an action: its weights, those at the start, and the displacement before, which becomes this one.
KEEP_OUT void measure_displacement(struct measures *measures, const float *weights, const float *start,
                                   float *previous, int64_t count) {
  floats sums[PRODUCTS - MOVED_MOVED][VECTORS] = {0};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) add_displacement(sums, weights, start, previous, i, 16);
  if (i < count) add_displacement(sums, weights, start, previous, i, count - i);
  UNROLL for (int k = MOVED_MOVED; k < PRODUCTS; k++) measures->sums[k] += (double)sum_of_16(sums[k - MOVED_MOVED]);
}

INLINE float *of_network(const struct qan_memory *memory, int64_t network) {
  return memory->at ? memory->at + network * memory->stride : 0;
}

static struct measures begin_measures(const struct qan_measuring *measuring, int64_t network, int64_t number) {
  return (struct measures){
      .previous_gradient = of_network(&measuring->previous_gradient, network),
      .start = of_network(&measuring->start, network),
      .previous_displacement = of_network(&measuring->previous_displacement, network),
      .is_first = number == 0,
      .is_last = number == measuring->batches - 1,
  };
}

// The cosine of two vectors; 0 where one of them is 0.
static float cosine_of(double product, double square, double other_square) {
  const double squares = square * other_square;
  return squares == 0 ? 0 : (float)(product / __builtin_sqrt(squares));
}

static void end_measures(const struct qan_measuring *measuring, int64_t network, const struct measures *measures) {
  float *measured = measuring->measured + network * MEASUREMENTS;
  const double *sums = measures->sums;
  const float of_batch[] = {
      [GRADIENT_NORM] = (float)__builtin_sqrt(sums[GRADIENT_GRADIENT]),
      [GRADIENT_COSINE] =
          cosine_of(sums[GRADIENT_PREVIOUS], sums[GRADIENT_GRADIENT], sums[PREVIOUS_PREVIOUS]),
      [UPDATE_NORM] = (float)__builtin_sqrt(sums[UPDATE_UPDATE]),
      [PREDICTED_DECREASE] = (float)-sums[GRADIENT_UPDATE],
  };
  for (int k = GRADIENT_NORM; k <= PREDICTED_DECREASE; k++) {
    measured[k] = measures->is_first ? of_batch[k] : measured[k] + of_batch[k];
    if (measures->is_last) measured[k] /= (float)measuring->batches;
  }
  if (measures->is_last) {
    measured[DISPLACEMENT] = (float)__builtin_sqrt(sums[MOVED_MOVED]);
    measured[DISPLACEMENT_COSINE] = cosine_of(sums[MOVED_LAST], sums[MOVED_MOVED], sums[LAST_LAST]);
    measured[WEIGHT_NORM] = (float)__builtin_sqrt(sums[WEIGHT_WEIGHT]);
  }
}
