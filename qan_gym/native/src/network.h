// A mini-batch of one network, and the evaluation of one.

// Gradients of the mini-batch; returns its loss, both times the loss scale.
static float gradients_of(const struct qan_training *job, int64_t network, const int64_t *indices,
                          struct workspace *space, float *memory) {
  const struct model model = model_of(&job->data, of_network(&job->weights, network));
  const struct layout layout = layout_of(job->data.channels, job->data.classes);
  float *gradient[TENSORS];
  for (int t = 0; t < TENSORS; t++) gradient[t] = memory + layout.start[t];
  conv1_of_background(&model, &job->data, space);
  prepare_backward(&model, space);
  const float scale = job->loss_scale[network];
  double loss = 0;
  for (int64_t first = 0; first < job->batch; first += CHUNK) {
    const int count = job->batch - first < CHUNK ? (int)(job->batch - first) : CHUNK;
    forward(&model, &job->data, indices + first, 0, count, space);
    for (int b = 0; b < count; b++) {
      const int64_t label = job->data.labels[indices[first + b]];
      const float own = cross_entropy(&model, space->logits + b * model.class_room, label, job->batch, scale);
      loss += (double)own;
      if (job->each) job->each[network * job->batch + first + b] = own;
    }
    backward(&model, &job->data, count, space, gradient, first > 0);
  }
  return scale * (float)(loss / (double)job->batch);
}

// One mini-batch, of some number in its action: gradients and update; returns its loss.
static float train_batch(const struct qan_training *job, int64_t network, const int64_t *indices, int64_t number,
                         struct workspace *space) {
  float *gradient = job->optimizer == GRADIENTS_ONLY ? of_network(&job->gradients, network) : space->gradient;
  const float loss = gradients_of(job, network, indices, space, gradient);
  const int weights_finite = job->optimizer == GRADIENTS_ONLY || update_network(job, network, gradient, number);
  job->finite[network] = (uint8_t)(weights_finite && loss - loss == 0);
  if (job->measuring.measured) job->measuring.losses[network * job->measuring.batches + number] = loss;
  return loss;
}

static void train_network(const struct qan_training *job, int64_t network, struct workspace *space) {
  const struct qan_sequence *sequence = &job->sequence;
  const int64_t *indices = job->indices + network * job->indices_stride;
  if (!sequence->count) {
    job->loss[network] = train_batch(job, network, indices, job->measuring.first, space);
    return;
  }
  for (int64_t number = 0; number < sequence->count; number++, indices += job->batch) {
    if (sequence->rates) job->learning_rate[network] = sequence->rates[number * job->work.networks + network];
    const int pulled = sequence->pulled[network] && sequence->clock[network] < sequence->pull_end;
    if (job->strength) job->strength[network] = pulled ? sequence->pull_strength : 0;
    const float loss = train_batch(job, network, indices, job->measuring.first + number, space);
    job->loss[network] += loss;
    sequence->smoothed[network] += sequence->smoothing * (loss - sequence->smoothed[network]);
    sequence->clock[network]++;
  }
}

static int largest_of(const float *logits, int classes) {
  int largest = 0;
  for (int k = 1; k < classes; k++)
    if (logits[k] > logits[largest]) largest = k;
  return largest;
}

static void evaluate_network(const struct qan_evaluation *job, int64_t network, struct workspace *space) {
  const struct model model = model_of(&job->data, of_network(&job->weights, network));
  conv1_of_background(&model, &job->data, space);
  double loss = 0;
  int64_t correct = 0;
  for (int64_t first = 0; first < job->data.count; first += CHUNK) {
    const int count = job->data.count - first < CHUNK ? (int)(job->data.count - first) : CHUNK;
    forward(&model, &job->data, 0, first, count, space);
    for (int b = 0; b < count; b++) {
      float *logits = space->logits + b * model.class_room;
      const int64_t label = job->data.labels[first + b];
      const float own = cross_entropy(&model, logits, label, 0, 1);
      loss += (double)own;
      if (job->each) job->each[network * job->data.count + first + b] = own;
      correct += largest_of(logits, model.classes) == label;
    }
  }
  job->loss[network] = (float)(loss / (double)job->data.count);
  job->accuracy[network] = (float)((double)correct / (double)job->data.count);
}
