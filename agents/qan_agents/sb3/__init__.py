"""The bridge to Stable-Baselines3: vector environments, replay, and its DQN in a run."""
