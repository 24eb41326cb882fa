"""Analysis of actions: a certificate that they matter, and the regret of a policy against a greedy oracle."""
