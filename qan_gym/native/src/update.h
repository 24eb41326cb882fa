// One pass over the parameters of a network: the optimizer's update, then the pull. It also finds whether all of them
// are finite.

// The numbers of an update; what they are for stands at the optimizers in `updated`.
struct rule {
  floats rate, momentum, decay, keep, fresh, beta2, fresh2, scale, epsilon, pull, unpulled;
};

// base^count by repeated squaring.
static double power(double base, int64_t count) {
  double result = 1;
  for (; count > 0; count >>= 1, base *= base)
    if (count & 1) result *= base;
  return result;
}

// Of an update after `step` others.
static struct rule rule_with(int optimizer, double rate, double momentum, double decay, double beta2, double epsilon,
                             int64_t step) {
  struct rule rule = {
      .rate = broadcast((float)rate),
      .momentum = broadcast((float)momentum),
      .decay = broadcast((float)decay),
      .unpulled = broadcast(1.0f),
  };
  if (optimizer == ADAMW) {
    const int64_t count = step + 1;
    rule.rate = broadcast((float)(rate / (1 - power(momentum, count))));
    rule.keep = broadcast((float)(1 - rate * decay));
    rule.fresh = broadcast((float)(1 - momentum));
    rule.beta2 = broadcast((float)beta2);
    rule.fresh2 = broadcast((float)(1 - beta2));
    rule.scale = broadcast((float)(1 / __builtin_sqrt(1 - power(beta2, count))));
    rule.epsilon = broadcast((float)epsilon);
  }
  return rule;
}

static struct rule rule_of(const struct qan_training *job, int64_t n) {
  struct rule rule = rule_with(job->optimizer, job->learning_rate[n], job->momentum[n], job->weight_decay[n], job->beta2,
                               job->epsilon, job->optimizer == ADAMW ? job->step[n] : 0);
  if (job->strength) {
    rule.pull = broadcast(job->strength[n]);
    rule.unpulled = broadcast(1.0f - job->strength[n]);
  }
  return rule;
}

// Weights w with gradients g after an update; `first` and `second` are the slots of the optimizer.
INLINE floats updated(floats w, floats g, floats *first, floats *second, const struct rule *rule, const int optimizer) {
  if (optimizer == ADAMW) {
    *first = fmadd(rule->fresh, g, rule->momentum * *first);         // mean of g
    *second = fmadd(rule->fresh2, g * g, rule->beta2 * *second);     // mean of g^2
    const floats spread = fmadd(square_root(*second), rule->scale, rule->epsilon);
    return fmadd(-rule->rate, *first / spread, rule->keep * w);
  }
  g = fmadd(rule->decay, w, g);
  if (optimizer != SGD) {
    *first = fmadd(rule->momentum, *first, g);  // the velocity
    g = optimizer == SGD_NESTEROV ? fmadd(rule->momentum, *first, g) : *first;
  }
  return fmadd(-rule->rate, g, w);
}

// The memory of one parameter: weights, gradients, slots, reference weights.
struct parameter {
  float *weights;
  const float *gradient, *reference;
  float *slots[2];
  int64_t length;
};

// w + c (w* - w), computed from the nearer end: exact for a small c, and w* for a c of 1.
enum pull { NO_PULL, WEAK, STRONG };  // c below 1/2, or not

INLINE floats after_pull(floats w, const struct parameter *p, int64_t i, int64_t count, const struct rule *rule,
                         const enum pull pull) {
  if (pull == NO_PULL) return w;
  const floats reference = load_part(p->reference + i, count);
  return pull == WEAK ? fmadd(rule->pull, reference - w, w) : fmadd(rule->unpulled, w - reference, reference);
}

// Updates `count` numbers from `i` on; adds 0 to `check`, or NaN where a new weight is not finite.
INLINE void update_vector(const struct parameter *p, int64_t i, int64_t count, const struct rule *rule, floats *check,
                          const int optimizer, const enum pull pull) {
  floats first = {0}, second = {0};
  if (optimizer != SGD) first = load_part(p->slots[0] + i, count);
  if (optimizer == ADAMW) second = load_part(p->slots[1] + i, count);
  const floats gradient = load_part(p->gradient + i, count);
  floats w = updated(load_part(p->weights + i, count), gradient, &first, &second, rule, optimizer);
  if (optimizer != SGD) store_part(p->slots[0] + i, first, count);
  if (optimizer == ADAMW) store_part(p->slots[1] + i, second, count);
  w = after_pull(w, p, i, count, rule, pull);
  store_part(p->weights + i, w, count);
  *check = fmadd(w, (floats){0}, *check);
}

INLINE void update_each(const struct parameter *parameter, const struct rule *numbers, floats *check,
                        const int optimizer, const enum pull pull) {
  const struct parameter p = *parameter;  // copies, because what is written might be what pointers point to
  const struct rule rule = *numbers;
  floats sum = *check;
  int64_t i = 0;
  for (; i + LANES <= p.length; i += LANES) update_vector(&p, i, LANES, &rule, &sum, optimizer, pull);
  if (i < p.length) update_vector(&p, i, p.length - i, &rule, &sum, optimizer, pull);
  *check = sum;
}

INLINE void update_pulled(const struct parameter *p, const struct rule *rule, floats *check, const int optimizer,
                          enum pull pull) {
  switch (pull) {
    case NO_PULL: update_each(p, rule, check, optimizer, NO_PULL); break;
    case WEAK: update_each(p, rule, check, optimizer, WEAK); break;
    case STRONG: update_each(p, rule, check, optimizer, STRONG); break;
  }
}

KEEP_OUT void update_parameter(const struct parameter *p, const struct rule *rule, floats *check, int optimizer,
                               enum pull pull) {
  switch (optimizer) {
    case SGD: update_pulled(p, rule, check, SGD, pull); break;
    case SGD_MOMENTUM: update_pulled(p, rule, check, SGD_MOMENTUM, pull); break;
    case SGD_NESTEROV: update_pulled(p, rule, check, SGD_NESTEROV, pull); break;
    case ADAMW: update_pulled(p, rule, check, ADAMW, pull); break;
  }
}

// The pull alone, of weights that are updated; `check` as above.
KEEP_OUT void pull_parameter(const struct parameter *p, const struct rule *rule, floats *check, enum pull pull) {
  for (int64_t i = 0; i < p->length; i += LANES) {
    const int64_t count = p->length - i;
    const floats w = after_pull(load_part(p->weights + i, count), p, i, count, rule, pull);
    store_part(p->weights + i, w, count);
    *check = fmadd(w, (floats){0}, *check);
  }
}

static struct parameter block_of(const struct parameter *p, int64_t first) {
  const int64_t left = p->length - first;
  return (struct parameter){
      .weights = p->weights + first,
      .gradient = p->gradient + first,
      .reference = p->reference ? p->reference + first : 0,
      .slots = {p->slots[0] ? p->slots[0] + first : 0, p->slots[1] ? p->slots[1] + first : 0},
      .length = left < BLOCK ? left : BLOCK,
  };
}

// As `update_parameter`, with the same bits, of the parameter that lies at `start` in a network.
static void update_and_measure(const struct parameter *whole, int64_t start, const struct rule *rule, floats *check,
                               int optimizer, enum pull pull, struct measures *measures) {
  float copy[BLOCK];
  for (int64_t first = 0; first < whole->length; first += BLOCK) {
    const struct parameter p = block_of(whole, first);
    const int64_t place = start + first;
    float *before = measures->is_first && !measures->is_last ? measures->start + place : copy;
    memcpy(before, p.weights, (size_t)p.length * sizeof *before);
    floats unpulled = {0};
    update_parameter(&p, rule, pull == NO_PULL ? check : &unpulled, optimizer, NO_PULL);
    measure_update(measures, p.gradient, p.weights, before, measures->previous_gradient + place, p.length);
    if (pull != NO_PULL) pull_parameter(&p, rule, check, pull);
    if (measures->is_last) {
      const float *start_of_action = measures->is_first ? copy : measures->start + place;
      measure_displacement(measures, p.weights, start_of_action, measures->previous_displacement + place, p.length);
    }
  }
}

// With the gradient of the mini-batch of some number in its action. Returns 1 if all weights are finite afterwards.
static int update_network(const struct qan_training *job, int64_t network, const float *gradient, int64_t number) {
  const struct layout layout = layout_of(job->data.channels, job->data.classes);
  const struct rule rule = rule_of(job, network);
  const uint32_t pulled = job->strength && job->strength[network] != 0 ? job->pulled : 0;
  const enum pull pull = pulled && job->strength[network] < 0.5f ? WEAK : STRONG;
  float *weights = of_network(&job->weights, network), *reference = of_network(&job->reference, network);
  float *first = of_network(&job->slots[0], network), *second = of_network(&job->slots[1], network);
  const int measured = job->measuring.measured != 0;
  struct measures measures = begin_measures(&job->measuring, network, number);
  floats check = {0};
  for (int t = 0; t < TENSORS; t++) {
    const int64_t start = layout.start[t];
    const struct parameter p = {
        .weights = weights + start,
        .gradient = gradient + start,
        .reference = reference ? reference + start : 0,
        .slots = {first ? first + start : 0, second ? second + start : 0},
        .length = layout.length[t],
    };
    const enum pull own_pull = pulled >> t & 1 ? pull : NO_PULL;
    if (measured) update_and_measure(&p, start, &rule, &check, job->optimizer, own_pull, &measures);
    else update_parameter(&p, &rule, &check, job->optimizer, own_pull);
  }
  if (measured) end_measures(&job->measuring, network, &measures);
  for (int i = 0; i < LANES; i++)
    if (check[i] != 0) return 0;  // NaN is not equal to anything
  return 1;
}
