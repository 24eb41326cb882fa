// The kernels, in terms of the vectors that an instruction set has defined. Included once per instruction set.
//
// enum blocking is how many values a loop keeps in registers at once; results do not depend on it.
//   CONV1_VECTORS    of filters, for the 9 places of a window
//   CONV2_PLACES     of conv2, 4 a window, for CONV2_VECTORS of filters
//   SPAN2_VECTORS    of a span of map 1 (SPAN2 is a multiple of them)
//   LINEAR_VECTORS   of outputs, for 5 images or 4 inputs
//   DOT_INPUTS       of linear1 for DOT_IMAGES
//   PRODUCT_VECTORS  of columns, for PRODUCT_ROWS (4 or 8) rows of a product of multilayer perceptrons
//   TAP_VECTORS      of the 5 x COLUMN pixels that a filter sees, for TAP_FILTERS
#include "functions.h"
#include "forward.h"
#include "backward.h"
#include "measure.h"
#include "update.h"
#include "network.h"
#include "random_streams.h"
#include "mlp_products.h"
#include "mlp_network.h"
#include "mlp_training.h"
