// One token through a model of the Llama family, all layers in one call: `native_step.py` prepares what it reads.
//
// All threads go through the layers together and meet after each product. What is small every thread computes for
// itself, so that there is less to wait for: norms, rounding to int8, the activation. Results are rounded to bf16 where
// transformers rounds; sums, and what attention makes of scores, are fp32.

#include "products.h"
#include "prompts.h"

#include <omp.h>

#include <vector>

// What follows has its likeness in `structs.py`.
struct Cache {
  void *keys, *values;                     // [heads, capacity, head size], bf16 or int8 codes
  uint16_t *key_scales, *value_scales;     // bf16 [heads, capacity] of int8 codes, else null
  int64_t capacity, first, position;       // the token is written at `position` and sees all from `first` on
};

struct Layer {
  const uint16_t *input_norm, *inner_norm, *query_norm, *key_norm;  // the last two may be null
  Matrix attention[3], output, mlp[2], down;
};

struct Model {
  const Layer* layers;
  const uint16_t* norm;
  Matrix head;
  int64_t count, hidden, inner, heads, shared, head_size;
  float epsilon, head_epsilon, scale;
};

namespace {

// What one thread works with.
struct Workspace {
  std::vector<float> wide[2], sums[2], scores, spread;
  std::vector<bf16> narrow[2], turned;
  Input input;

  void reserve(int64_t columns, int64_t head_size) {
    for (int i = 0; i < 2; i++) {
      if (int64_t(wide[i].size()) < columns) {
        wide[i].resize(columns);
        narrow[i].resize(columns);
        sums[i].resize(columns / PART + 1);
      }
      (i ? input.rounded : input.plain) = Row{narrow[i].data(), wide[i].data(), sums[i].data(), 0, 1};
    }
    spread.resize(2 * head_size);
    turned.resize(head_size);
  }
};

struct Buffers {
  bf16 *hidden, *states, *seen, *inner;
};

// `input.plain.wide` is there; what these matrices need beside it.
void complete(Input& input, int64_t columns, const Matrix* matrices, int count) {
  bool rounds = false;
  for (int i = 0; i < count; i++) rounds = rounds || matrices[i].rounds_input;
  complete(input.plain, columns);
  if (rounds) round_to_int8(input.plain, input.rounded, columns);
}

// Root mean square norm of a row.
void norm(const bf16* x, const bf16* weight, float epsilon, int64_t columns, float* out) {
  int64_t i = 0;
  Floats some = zero();
  for (; i + LANES <= columns; i += LANES) some = fma(load(x + i), load(x + i), some);
  float squares = sum(some);
  for (; i < columns; i++) squares += widen(x[i]) * widen(x[i]);
  const float factor = 1 / __builtin_sqrtf(squares / columns + epsilon);
  for (i = 0; i + LANES <= columns; i += LANES) {
    store(out + i, through_bf16(mul(through_bf16(mul(load(x + i), all(factor))), load(weight + i))));
  }
  for (; i < columns; i++) out[i] = through_bf16(through_bf16(widen(x[i]) * factor) * widen(weight[i]));
}

// Turn the halves of a head against each other by its position.
void turn(const float* x, const bf16* cosine, const bf16* sine, int64_t size, bf16* out) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < size; i++) {
    const float other = i < half ? -x[i + half] : x[i - half];
    out[i] = narrow(through_bf16(x[i] * widen(cosine[i])) + through_bf16(other * widen(sine[i])));
  }
}

// A head of queries or keys, normed where the model does that, and turned.
void prepare_head(const Model& model, const bf16* x, const bf16* weight, const bf16* cosine, const bf16* sine,
                  float* spread, bf16* out) {
  if (weight) {
    norm(x, weight, model.head_epsilon, model.head_size, spread);
  } else {
    for (int64_t i = 0; i < model.head_size; i++) spread[i] = widen(x[i]);
  }
  turn(spread, cosine, sine, model.head_size, out);
}

// Symmetric codes -127…127 with one scale: `kv_cache`.
void keep_int8(const bf16* x, int64_t size, int8_t* codes, bf16* scale) {
  const float limit = largest_magnitude(x, size) / 127;
  *scale = narrow(limit > TINY ? limit : TINY);
  for (int64_t i = 0; i < size; i++) {
    const float code = __builtin_rintf(widen(x[i]) / widen(*scale));
    codes[i] = int8_t(code < -127 ? -127 : code > 127 ? 127 : code);
  }
}

inline Floats load(const int8_t* p) { return floats(signed_bytes(p)); }

void keep(const Cache& cache, const bf16* key, const bf16* value, int64_t head, int64_t size) {
  const int64_t at = head * cache.capacity + cache.position;
  if (cache.key_scales) {
    keep_int8(key, size, (int8_t*)cache.keys + at * size, cache.key_scales + at);
    keep_int8(value, size, (int8_t*)cache.values + at * size, cache.value_scales + at);
  } else {
    memcpy((bf16*)cache.keys + at * size, key, size * sizeof(bf16));
    memcpy((bf16*)cache.values + at * size, value, size * sizeof(bf16));
  }
}

// Scores of `count` keys, times their scales where they have some; the largest of them.
template <typename State>
float score(const float* query, const State* keys, const bf16* scales, int64_t count, int64_t size, float* scores) {
  float most = -3.0e38f;
  for (int64_t i = 0; i < count; i++, keys += size) {
    Floats found = zero();
    for (int64_t j = 0; j < size; j += LANES) found = fma(load(query + j), load(keys + j), found);
    scores[i] = sum(found) * (scales ? widen(scales[i]) : 1.0f);
    most = most > scores[i] ? most : scores[i];
  }
  return most;
}

// Scores become e^(score - most); their sum.
float weigh(float* scores, int64_t count, float most) {
  Floats total = zero();
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats share = exponential(sub(load(scores + i), all(most)));
    store(scores + i, share);
    total = add(total, share);
  }
  float all_of_them = sum(total);
  alignas(64) float rest[LANES];
  for (int j = 0; j < LANES; j++) rest[j] = i + j < count ? scores[i + j] - most : 0;
  store(rest, exponential(load(rest)));
  for (int j = 0; i < count; i++, j++) all_of_them += scores[i] = rest[j];
  return all_of_them;
}

// Values, each times its share, a few vectors of a head at a time; rounded once.
template <int VECTORS, typename State>
void gather(const float* shares, const State* values, const bf16* scales, int64_t count, int64_t size, float factor,
            bf16* out) {
  Floats sums[VECTORS];
  for (int j = 0; j < VECTORS; j++) sums[j] = zero();
  for (int64_t i = 0; i < count; i++, values += size) {
    const Floats share = all(scales ? shares[i] * widen(scales[i]) : shares[i]);
    for (int j = 0; j < VECTORS; j++) sums[j] = fma(load(values + j * LANES), share, sums[j]);
  }
  for (int j = 0; j < VECTORS; j++) store(out + j * LANES, mul(sums[j], all(factor)));
}

// What one head of queries sees. The token's own key and value are in the cache by now.
template <typename State>
void attend(const Model& model, const Cache& cache, int64_t head, const float* query, float* scores, bf16* out) {
  const int64_t size = model.head_size, count = cache.position + 1 - cache.first;
  const int64_t from = head * cache.capacity + cache.first;
  const bf16 *key_scales = cache.key_scales ? cache.key_scales + from : nullptr,
             *value_scales = cache.value_scales ? cache.value_scales + from : nullptr;
  const float most = score(query, (const State*)cache.keys + from * size, key_scales, count, size, scores);
  const float factor = 1 / weigh(scores, count, most);
  const State* values = (const State*)cache.values + from * size;
  int64_t j = 0;
  for (; j + 4 * LANES <= size; j += 4 * LANES) {
    gather<4>(scores, values + j, value_scales, count, size, factor, out + j);
  }
  for (; j < size; j += LANES) gather<1>(scores, values + j, value_scales, count, size, factor, out + j);
}

// Heads of keys and values are divided among the threads, and the queries that share them: by those heads where all
// threads get as many, else one by one, when all keys are there.
void attention(const Model& model, const Layer& layer, const Cache& cache, const bf16* cosine, const bf16* sine,
               const Buffers& buffers, Workspace& own, int thread, int threads) {
  const int64_t size = model.head_size, group = model.heads / model.shared;
  const bf16* keys = buffers.states + model.heads * size;
  const bf16* values = keys + model.shared * size;
  bf16* turned = own.turned.data();
  float *spread = own.spread.data(), *query = spread + size;
  const bool even = model.shared % threads == 0;
  const Share kept(model.shared, thread, threads);
  Share seen(model.heads, thread, threads);
  if (even) seen.first = kept.first * group, seen.last = kept.last * group;
#pragma omp barrier
  for (int64_t head = kept.first; head < kept.last; head++) {
    prepare_head(model, keys + head * size, layer.key_norm, cosine, sine, spread, turned);
    keep(cache, turned, values + head * size, head, size);
  }
  if (!even) {
#pragma omp barrier
  }
  own.scores.resize(cache.position + 1 - cache.first);
  for (int64_t head = seen.first; head < seen.last; head++) {
    prepare_head(model, buffers.states + head * size, layer.query_norm, cosine, sine, spread, turned);
    for (int64_t i = 0; i < size; i++) query[i] = widen(turned[i]) * model.scale;
    const auto see = cache.key_scales ? attend<int8_t> : attend<bf16>;
    see(model, cache, head / group, query, own.scores.data(), buffers.seen + head * size);
  }
}

// silu(gate) · up
void activate(const bf16* gate, const bf16* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += LANES) {
    const Floats x = load(gate + i);
    const Floats silu = div(x, add(all(1.0f), exponential(sub(zero(), x))));
    store(out + i, through_bf16(mul(through_bf16(silu), load(up + i))));
  }
}

void layer_step(const Model& model, const Layer& layer, const Cache& cache, const bf16* cosine, const bf16* sine,
                const Buffers& buffers, Workspace& own, int thread, int threads) {
  Input& input = own.input;
  norm(buffers.hidden, layer.input_norm, model.epsilon, model.hidden, input.plain.wide);
  complete(input, model.hidden, layer.attention, 3);
  product<false>(layer.attention, 3, input, buffers.states, thread, threads);
  attention(model, layer, cache, cosine, sine, buffers, own, thread, threads);
#pragma omp barrier
  const int64_t attended = model.heads * model.head_size;
  for (int64_t i = 0; i < attended; i += LANES) store(input.plain.wide + i, load(buffers.seen + i));
  complete(input, attended, &layer.output, 1);
  product<true>(&layer.output, 1, input, buffers.hidden, thread, threads);
#pragma omp barrier
  norm(buffers.hidden, layer.inner_norm, model.epsilon, model.hidden, input.plain.wide);
  complete(input, model.hidden, layer.mlp, 2);
  product<false>(layer.mlp, 2, input, buffers.inner, thread, threads);
#pragma omp barrier
  activate(buffers.inner, buffers.inner + model.inner, model.inner, input.plain.wide);
  complete(input, model.inner, &layer.down, 1);
  product<true>(&layer.down, 1, input, buffers.hidden, thread, threads);
#pragma omp barrier
}

}  // namespace

// `hidden`: the token's row of the embedding, bf16; it is overwritten. `scratch`: bf16 for states, what attention saw,
// and gate and up. `logits`: bf16 [words].
extern "C" void quantstudio_token(const Model* model, const Cache* caches, const uint16_t* cosine, const uint16_t* sine,
                                  uint16_t* hidden, uint16_t* scratch, uint16_t* logits, int threads) {
  const int64_t attended = model->heads * model->head_size;
  const int64_t widest = model->hidden > model->inner ? model->hidden : model->inner;
  uint16_t* seen = scratch + attended + 2 * model->shared * model->head_size;
  const Buffers buffers{hidden, scratch, seen, seen + attended};
#pragma omp parallel num_threads(threads)
  {
    static thread_local Workspace own;
    const int thread = omp_get_thread_num(), team = omp_get_num_threads();
    own.reserve((widest > attended ? widest : attended) + LANES, model->head_size);
    for (int64_t i = 0; i < model->count; i++) {
      layer_step(*model, model->layers[i], caches[i], cosine, sine, buffers, own, thread, team);
    }
    norm(buffers.hidden, model->norm, model->epsilon, model->hidden, own.input.plain.wide);
    complete(own.input, model->hidden, &model->head, 1);
    product<false>(&model->head, 1, own.input, logits, thread, team);
  }
}

// One row of activations times one matrix: bf16 [columns] → bf16 [rows].
extern "C" void quantstudio_product(const Matrix* matrix, const uint16_t* x, uint16_t* out, int threads) {
#pragma omp parallel num_threads(threads)
  {
    static thread_local Workspace own;
    own.reserve(matrix->columns + LANES, LANES);
    for (int64_t i = 0; i < matrix->columns; i++) own.input.plain.wide[i] = widen(x[i]);
    complete(own.input, matrix->columns, matrix, 1);
    product<false>(matrix, 1, own.input, out, omp_get_thread_num(), omp_get_num_threads());
  }
}

// Many rows of activations times one matrix of 4 or 8 bits: bf16 [count, columns] → bf16 [count, rows]. Rows of codes
// come with a scale for each.
extern "C" void quantstudio_prompt(const Matrix* matrix, const uint16_t* rows, const uint16_t* scales, int64_t count,
                                   uint16_t* out, int threads) {
  const Matrix& m = *matrix;
  const Rows x{rows, scales, count};
  const int64_t strips = (count + STRIP - 1) / STRIP, cells = (m.columns + STEP - 1) / STEP;
  const int64_t tiles = (m.rows + WIDTH - 1) / WIDTH;
  // Where there are few tiles, each is divided among threads by strips.
  const int64_t wanted = (4 * threads + tiles - 1) / tiles, parts = wanted < strips ? wanted : strips;
  std::vector<Cell> packed(strips * cells * STRIP);
#pragma omp parallel num_threads(threads)
  {
    Bench own;
#pragma omp for
    for (int64_t strip = 0; strip < strips; strip++) {
      pack_strip(x, m.columns, strip, packed.data() + strip * cells * STRIP);
    }
#pragma omp for schedule(dynamic)
    for (int64_t number = 0; number < tiles * parts; number++) {
      multiply_tile(m, number / parts * WIDTH, packed.data(), Share(strips, number % parts, parts), x, own, out);
    }
  }
}

// Rows of an int4 weight that lie together.
extern "C" int quantstudio_int4_rows() { return 4 * LANES; }
