"""Online reinforcement learning: a policy from its own steps in an environment."""
