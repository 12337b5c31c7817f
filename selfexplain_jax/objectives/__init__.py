"""What training minimises: one function per term, [B] each, composed by the config."""

from selfexplain_jax.objectives.compose import TERMS, total_objective, validate_objective

__all__ = ["TERMS", "total_objective", "validate_objective"]
