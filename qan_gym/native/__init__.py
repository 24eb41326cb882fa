"""The C kernels that train and evaluate N networks `mnist-cnn`, and their Python interface."""
