"""Private interfaces of gin and JAX that have no public counterpart.

They stand here alone, each with the reason, so that a new version of either
library breaks one file.
"""

from collections.abc import Iterator
from typing import Any

import gin
from jax._src import distributed


def bound_macros() -> set[str]:
  """Returns the names of all macros that are bound.

  gin's public functions query one parameter by its name and list none.
  """
  config = gin.config._CONFIG  # pyright: ignore[reportAttributeAccessIssue]
  return {scope for scope, selector in config if selector == 'gin.macro'}


def references() -> Iterator[Any]:
  """Yields all references, macros included, in what gin has parsed.

  Each has a `selector` and `scopes`; that of a macro is named by its scopes.
  gin has no public way to walk its configuration.
  """
  config = gin.config._CONFIG  # pyright: ignore[reportAttributeAccessIssue]
  return gin.config.iterate_references(config)  # pyright: ignore


def process_count() -> int:
  """Returns how many processes have joined.

  `jax.process_count` starts the devices, which waits for the other processes;
  after an error of the configuration they may never come.
  """
  return distributed.global_state.num_processes or 1
