"""What others can use: datasets for offline learning, and agents and controllers on a hub."""
