"""Looks up tasks and mixtures in seqio's registries."""

from __future__ import annotations

from collections.abc import Sequence
import difflib
import importlib

from etils import epy

with epy.lazy_imports():
  import seqio

_SHOWN = 12  # names of tasks in an error


def find(
  mixture_or_task_name: str | None, *, module: str | Sequence[str] | None = None
) -> seqio.Task | seqio.Mixture:
  """Returns the task or mixture of a name.

    task = find('xsum_prompts', module='tasks.xsum')

  Args:
    mixture_or_task_name: MIXTURE_OR_TASK_NAME, a name registered with seqio.
      None is an error.
    module: MIXTURE_OR_TASK_MODULE, the module or modules that register the
      task. They are imported first. None imports nothing.

  Raises:
    ValueError: A module cannot be imported, or there is no such task. The
      message lists the nearest names.
  """
  if mixture_or_task_name is None:
    raise ValueError(
      'This run reads a task, but MIXTURE_OR_TASK_NAME is None. Set '
      'PROMPT_TASK, or PROMPTS_FILE and VOCABULARY for prompts of a file.'
    )
  for name in (module,) if isinstance(module, str) else module or ():
    _import_tasks(name)
  names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
  if mixture_or_task_name in names:
    return seqio.get_mixture_or_task(mixture_or_task_name)
  nearest = difflib.get_close_matches(mixture_or_task_name, names, cutoff=0.4)
  known = ', '.join(names[:_SHOWN]) or 'none'
  if len(names) > _SHOWN:
    known += f' and {len(names) - _SHOWN} more'
  raise ValueError(
    f'MIXTURE_OR_TASK_NAME {mixture_or_task_name!r} is not a task or mixture. '
    f'Nearest: {", ".join(nearest) or "none"}. Known: '
    f'{known}. MIXTURE_OR_TASK_MODULE must name the '
    'module that defines it.'
  )


def _import_tasks(name: str) -> None:
  if not all(part.isidentifier() for part in name.split('.')):
    raise ValueError(
      f'MIXTURE_OR_TASK_MODULE {name!r} is not the name of a module, such as '
      "'tasks.xsum'."
    )
  try:
    importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f'MIXTURE_OR_TASK_MODULE {name!r} cannot be imported: {error}.'
    ) from error
