// Sizes of blocks for 32 registers of 16 floats.
enum blocking {
  CONV1_VECTORS = 2,
  CONV2_PLACES = 8,
  CONV2_VECTORS = 2,
  SPAN2_VECTORS = 10,
  LINEAR_VECTORS = 4,
  DOT_INPUTS = 4,
  DOT_IMAGES = 5,
  TAP_VECTORS = 3,
  TAP_FILTERS = 2,
  PRODUCT_VECTORS = 2,
  PRODUCT_ROWS = 8,
};
