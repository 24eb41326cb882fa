"""The networks in training (the optimizees): N at once as stacked parameters, their layers and their optimizers."""
