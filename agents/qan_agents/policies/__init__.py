"""Policies that learn nothing, and the rollout that plays an episode with any policy."""
