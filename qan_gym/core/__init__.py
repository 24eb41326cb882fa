"""The core: N training runs in lock-step, their state, what is seen and paid, and the help of a reference network."""
