"""Offline reinforcement learning: a policy from recorded transitions."""
