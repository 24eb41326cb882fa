"""Agents that play qan-gym: Stable-Baselines3's DQN, the schedules of a practitioner, and the command `qan`."""
