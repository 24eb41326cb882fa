#include "kernels.h"

#include <math.h>
void qan_exp(const double *x, double *y, int64_t count) { for (int64_t i = 0; i < count; i++) y[i] = exp(x[i]); }
void qan_log(const double *x, double *y, int64_t count) { for (int64_t i = 0; i < count; i++) y[i] = log(x[i]); }
void qan_cos(const double *x, double *y, int64_t count) { for (int64_t i = 0; i < count; i++) y[i] = cos(x[i]); }
