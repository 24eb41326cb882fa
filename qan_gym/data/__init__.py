"""Data sets: found or downloaded, verified, split, whitened, augmented."""
