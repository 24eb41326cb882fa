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

// Adds the products of 16 floats from `i` on, of which `left` are there. One array for each sum, so that the compiler
// keeps it in registers.
#define ADD(sum, a, b) sum[j] = fmadd(a, b, sum[j])

// A block: its gradient, which becomes the previous one, and its weights after the update and before it.
KEEP_OUT void measure_update(struct measures *measures, const float *gradient, const float *weights,
                             const float *before, float *previous, int64_t count) {
  floats gg[VECTORS] = {0}, pp[VECTORS] = {0}, gp[VECTORS] = {0}, uu[VECTORS] = {0}, gu[VECTORS] = {0};
  for (int64_t i = 0; i < count; i += 16) {
    UNROLL for (int j = 0; j < VECTORS; j++) {
      const int64_t at = i + j * LANES, left = count - at;
      const floats g = load_part(gradient + at, left), p = load_part(previous + at, left);
      const floats u = load_part(weights + at, left) - load_part(before + at, left);
      store_part(previous + at, g, left);
      ADD(gg, g, g), ADD(pp, p, p), ADD(gp, g, p), ADD(uu, u, u), ADD(gu, g, u);
    }
  }
  double *sums = measures->sums;
  sums[GRADIENT_GRADIENT] += (double)sum_of_16(gg);
  sums[PREVIOUS_PREVIOUS] += (double)sum_of_16(pp);
  sums[GRADIENT_PREVIOUS] += (double)sum_of_16(gp);
  sums[UPDATE_UPDATE] += (double)sum_of_16(uu);
  sums[GRADIENT_UPDATE] += (double)sum_of_16(gu);
}

// A block at the end of an action: its weights, those at the start, and the displacement before, which becomes this one.
KEEP_OUT void measure_displacement(struct measures *measures, const float *weights, const float *start,
                                   float *previous, int64_t count) {
  floats mm[VECTORS] = {0}, ll[VECTORS] = {0}, ml[VECTORS] = {0}, ww[VECTORS] = {0};
  for (int64_t i = 0; i < count; i += 16) {
    UNROLL for (int j = 0; j < VECTORS; j++) {
      const int64_t at = i + j * LANES, left = count - at;
      const floats w = load_part(weights + at, left), last = load_part(previous + at, left);
      const floats moved = w - load_part(start + at, left);
      store_part(previous + at, moved, left);
      ADD(mm, moved, moved), ADD(ll, last, last), ADD(ml, moved, last), ADD(ww, w, w);
    }
  }
  double *sums = measures->sums;
  sums[MOVED_MOVED] += (double)sum_of_16(mm);
  sums[LAST_LAST] += (double)sum_of_16(ll);
  sums[MOVED_LAST] += (double)sum_of_16(ml);
  sums[WEIGHT_WEIGHT] += (double)sum_of_16(ww);
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
