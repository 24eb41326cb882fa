"""What has nothing to do with games: random streams, files, numerical precision, CUDA graphs, checks of settings."""
