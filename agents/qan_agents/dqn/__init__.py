"""The bundled DQN: settings, network, replay, acting and learning, on one device as tensors."""
