"""Reinforcement learning with rich feedback for language models, in JAX."""
