"""General tools: random streams, files, numerical precision, CUDA graphs, checks of settings."""
