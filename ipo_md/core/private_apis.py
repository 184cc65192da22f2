"""Private interfaces of gin and JAX that have no public counterpart.

They stand here alone, each with the reason, so that a new version of either
library breaks one file.
"""

from collections.abc import Callable
from collections.abc import Iterator
import itertools
from typing import Any

from gin import config as gin_config
from jax._src import distributed

_EXCHANGE_SECONDS = 1200  # for the slowest process to read its configuration
_exchanges = itertools.count()


def bound_macros() -> set[str]:
  """Returns the names of all macros that are bound.

  gin's public functions query one parameter by its name and list none.
  """
  config = gin_config._CONFIG
  return {scope for scope, selector in config if selector == 'gin.macro'}


def references() -> Iterator[Any]:
  """Yields all references, macros included, in what gin has parsed.

  Each has a `selector` and `scopes`; that of a macro is named by its scopes.
  gin has no public way to walk its configuration.
  """
  config = gin_config._CONFIG
  return gin_config.iterate_references(config)


def process_count() -> int:
  """Returns how many processes have joined.

  `jax.process_count` starts the devices, which waits for the other processes;
  after an error of the configuration they may never come.
  """
  return distributed.global_state.num_processes or 1


def used_bindings(
  counts: Callable[[Any, str], bool] = lambda target, parameter: True,
) -> Iterator[tuple[Any, str, str, Any]]:
  """Yields what the run binds: (target, name of the target, parameter, value).

  Only targets that RUN refers to, directly or through others, are visited. gin
  has no public way to walk its configuration, nor to ask what a reference
  refers to.

  Args:
    counts: Whether a parameter of a target is visited.
  """
  config = gin_config._CONFIG
  todo = [(config.get(('RUN', 'gin.macro'), {}).get('value'), ())]
  seen = set()
  while todo:
    value, active = todo.pop()
    for reference in gin_config.iterate_references(value):
      if reference.selector == 'gin.macro':
        key = ('/'.join(reference.scopes), 'gin.macro')
        todo.append((config.get(key, {}).get('value'), active))
        continue
      scopes = tuple(reference.scopes) or active
      target = reference.configurable
      assert target is not None  # gin refuses references to unknown names
      selector = target.selector
      if (scopes, selector) in seen:
        continue
      seen.add((scopes, selector))
      bound = {}
      for length in range(len(scopes) + 1):
        key = ('/'.join(scopes[:length]), selector)
        bound |= config.get(key, {})
      if not bound:  # its code counts all the same
        yield target.wrapped, '/'.join([*scopes, reference.selector]), '', None
      for parameter, bound_value in bound.items():
        if not counts(target.wrapped, parameter):
          continue
        name = '/'.join([*scopes, reference.selector])
        yield target.wrapped, name, parameter, bound_value
        todo.append((bound_value, scopes))


def macro_of(value: Any) -> str | None:
  """Returns the macro that a bound value refers to, or None.

  The class of gin's references is not public.
  """
  if isinstance(value, gin_config.ConfigurableReference):
    return '/'.join(value.scopes) if value.selector == 'gin.macro' else None
  return None


def value_of(macro: str) -> Any:
  """Returns what a macro is bound to, references left as they are."""
  config = gin_config._CONFIG
  return config.get((macro, 'gin.macro'), {}).get('value')


def exchange(text: str) -> list[str]:
  """Returns the texts of all processes, in their order.

  Uses the store of JAX's coordination service, so that no device is started.
  All processes have to call it equally often.

  Args:
    text: Text of this process.
  """
  state = distributed.global_state
  if process_count() == 1:
    return [text]
  prefix = f'ipo_md/exchange/{next(_exchanges)}'
  client = state.client
  assert client is not None  # two or more processes have joined
  client.key_value_set(f'{prefix}/{state.process_id}', text)
  return [
    client.blocking_key_value_get(f'{prefix}/{n}', _EXCHANGE_SECONDS * 1000)
    for n in range(process_count())
  ]


def process_id() -> int:
  """Returns the number of this process, without starting the devices."""
  return distributed.global_state.process_id or 0


def is_called(value: Any) -> bool | None:
  """Returns whether a reference is written with brackets, as @function().

  None if the value is no reference. The class of gin's references is not
  public.
  """
  if isinstance(value, gin_config.ConfigurableReference):
    return value.evaluate
  return None
