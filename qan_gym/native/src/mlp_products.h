// Products of matrices: out[r][c] = sum over k of a(r, k) b[k][c], in the order of k, whatever the instruction set.
// Rows of b and of outputs need not begin on multiples of LANES: what vectors take in behind the last column is kept out
// of the results.

struct product {
  const float *a;         // a(r, k) is at r * stride + k, or of the gradients of weights at k * stride + r
  const float *b, *bias;  // bias: what the sums begin with; NULL: 0
  float *out;
  int rows, depth, columns;
  int a_stride, b_stride, out_stride;
};

// LAYER: out has room for whole vectors in each row. FIRST_GRADIENT, MORE_GRADIENT: its rows lie one right after another,
// and what is there is replaced or added to.
enum product_kind { LAYER, FIRST_GRADIENT, MORE_GRADIENT };

static const int32_t FIRST_LANES[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};

// Keeps the first `count` lanes of a vector and puts 0 into the others.
INLINE floats first_lanes(floats v, int64_t count) {
  ints keep;
  memcpy(&keep, FIRST_LANES + (count < 16 ? 16 - count : 0), sizeof keep);
  return (floats)((ints)v & keep);
}

INLINE void product_block(const struct product *p, int row, int column, const int rows, const int vectors,
                          const enum product_kind kind) {
  enum { MOST = 4 };
  floats sums[8][MOST];
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++)
      sums[r][v] = p->bias ? load(p->bias + column + v * LANES) : (floats){0};
  const int64_t stride = p->a_stride, b_stride = p->b_stride, depth = p->depth;
  const float *b = p->b + column, *a = kind == LAYER ? p->a + row * stride : p->a + row;
  for (int64_t k = 0; k < depth; k++, b += b_stride, a += kind == LAYER ? 1 : stride) {
    floats w[MOST];
    UNROLL for (int v = 0; v < vectors; v++) w[v] = load(b + v * LANES);
    UNROLL for (int r = 0; r < rows; r++) {
      const floats x = broadcast(kind == LAYER ? a[r * stride] : a[r]);
      UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = fmadd(x, w[v], sums[r][v]);
    }
  }
  float *out = p->out + (int64_t)row * p->out_stride + column;
  UNROLL for (int r = 0; r < rows; r++, out += p->out_stride) UNROLL for (int v = 0; v < vectors; v++) {
    float *at = out + v * LANES;
    if (kind == LAYER) {
      store(at, sums[r][v]);
    } else {  // the lanes behind the row are the next row's: they become 0 before it is written, or have 0 added
      const floats own = first_lanes(sums[r][v], p->columns - column - v * LANES);
      store(at, own + (kind == FIRST_GRADIENT ? (floats){0} : load(at)));  // never -0, to which adding 0 matters
    }
  }
}

INLINE void product_column(const struct product *p, int column, const int vectors, const enum product_kind kind) {
  int row = 0;
  if (vectors == 1 || PRODUCT_ROWS == 8)
    for (; row + 8 <= p->rows; row += 8) product_block(p, row, column, 8, vectors, kind);
  for (; row + 4 <= p->rows; row += 4) product_block(p, row, column, 4, vectors, kind);
  for (; row < p->rows; row++) product_block(p, row, column, 1, vectors, kind);
}

INLINE void products(const struct product *p, const enum product_kind kind) {
  enum { V = PRODUCT_VECTORS };
  const int vectors = (p->columns + LANES - 1) / LANES, whole = vectors / V * V;
  // From the last columns to the first, because a row of a gradient overwrites the first columns of the next one.
  for (int v = vectors - 1; v >= whole; v--) product_column(p, v * LANES, 1, kind);
  for (int v = whole - V; v >= 0; v -= V) product_column(p, v * LANES, V, kind);
}

KEEP_OUT void layer_products(const struct product *p) { products(p, LAYER); }
KEEP_OUT void first_gradient_products(const struct product *p) { products(p, FIRST_GRADIENT); }
KEEP_OUT void more_gradient_products(const struct product *p) { products(p, MORE_GRADIENT); }

// (rows, columns), row after row without room -> (columns rounded up to 16, rows rounded up to 16). Behind the columns and
// rows lies anything. From the last row on, up to LANES - 1 floats behind it are read.
KEEP_OUT void transpose_matrix(const float *matrix, int rows, int columns, float *transposed) {
  const int room = (int)rounded_up(rows);
  for (int i = 0; i < rows; i += LANES)
    for (int j = 0; j < columns; j += LANES) {
      floats r[LANES];
      UNROLL for (int k = 0; k < LANES; k++) r[k] = load(matrix + (i + k < rows ? i + k : rows - 1) * columns + j);
      transpose(r);
      UNROLL for (int k = 0; k < LANES; k++) store(transposed + (j + k) * room + i, r[k]);
    }
}
