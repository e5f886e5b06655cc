"""Numeric kernels; this package imports nothing of sdpo_jax."""
