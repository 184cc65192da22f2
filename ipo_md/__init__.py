"""On-line preference optimisation of language models in JAX."""
