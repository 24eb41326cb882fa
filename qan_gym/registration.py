"""The table of environment ids."""

ENTRY_POINTS = {
    "QanLR-MNIST-v0": "qan_gym.env:LearningRateEnv",
    "QanMinibatch-MNIST-v0": "qan_gym.env:MinibatchEnv",
    "QanLR-MNIST5k-v1": "qan_gym.env:LearningRateEnv",
    "QanMinibatch-MNIST5k-v1": "qan_gym.env:MinibatchEnv",
    "QanLR-CIFAR10-v0": "qan_gym.env:LearningRateEnv",
    "QanLR-Family-v0": "qan_gym.families.env:LearningRateFamilyEnv",
    "QanMinibatch-LongTail-v0": "qan_gym.families.env:LongTailEnv",
}
VECTOR_ENTRY_POINT = "qan_gym.vector_env:QanVectorEnv"


def register_envs() -> None:
    """Register every qan-gym id with Gymnasium. Calling it again changes nothing."""
    from gymnasium.envs.registration import register, registry

    for env_id, entry_point in ENTRY_POINTS.items():
        if env_id not in registry:
            # The budget ends an episode inside the environment, so there is no max_episode_steps.
            kwargs = {"env_id": env_id}
            register(env_id, entry_point=entry_point, vector_entry_point=VECTOR_ENTRY_POINT, kwargs=kwargs)
