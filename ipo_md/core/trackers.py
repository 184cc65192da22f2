"""Shows a run elsewhere than in TensorBoard: Weights & Biases, or your own.

A tracker is any writer with the methods of `Tracker`, those of CLU's
MetricWriter that a run calls. `TRACKER = @trackers.Wandb()` binds one. The
files in MODEL_DIR are complete without it, so whatever a tracker raises is said
in one line, and the run goes on.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import importlib
import importlib.util
import pathlib
from typing import Any
from typing import Literal
from typing import Protocol
from typing import runtime_checkable
import uuid

from etils import epath
import gin

from ipo_md.core import bindings
from ipo_md.core import paths
from ipo_md.core import progress

_FINISH_SECONDS = 120
_STEP = 'step'
_METHODS = ('write_hparams', 'write_scalars', 'write_texts', 'close')


class Tracker(Protocol):
  """The methods of a writer that a run calls, one after another, in a thread.

  Every process makes the writer; process 0 alone calls its methods.
  """

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Takes the bindings of the run, when it starts."""

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes metrics. A resumed run may repeat steps."""

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Takes samples, as Markdown."""

  def close(self) -> None:
    """Ends the writer. It has to return, or the process does not end."""


def check(tracker: Tracker | None) -> None:
  """Checks that an object has the methods of a tracker.

  Raises:
    ValueError: Names those that are missing.
  """
  missing = [m for m in _METHODS if not callable(getattr(tracker, m, None))]
  if tracker is not None and missing:
    raise ValueError(
      f'TRACKER, a {type(tracker).__name__}, lacks {" and ".join(missing)}: a '
      f'tracker has the methods {", ".join(_METHODS)}.'
    )


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of a report.

  Attributes:
    columns: Names of the columns.
    rows: Rows of texts and numbers.
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]

  @property
  def markdown(self) -> str:
    """The table in Markdown."""
    lines = [self.columns, ['---'] * len(self.columns), *self.rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


@runtime_checkable
class RunTracker(Protocol):
  """A tracker that knows more of a run than CLU's interface says.

  Others get tables as Markdown, and are closed after a failure as well.
  """

  def write_report(
    self, tables: Mapping[str, Table], files: Sequence[epath.Path]
  ) -> None:
    """Takes the tables and the files of a comparison."""

  def fail(self) -> None:
    """Ends the writer of a run that has failed."""


class InBackground:
  """Calls a tracker in a thread, until it fails.

    with trackers.InBackground(tracker) as background:
      background.scalars(step, {'loss': loss})

  Args:
    tracker: Tracker, which gets the bindings of the run first; or None.
  """

  def __init__(self, tracker: Tracker | None):
    self._tracker = tracker
    self._thread = futures.ThreadPoolExecutor(1, 'tracker')
    self._calls: list[futures.Future] = []
    self._works = True
    if tracker is not None:
      self._call(tracker.write_hparams, bindings.flat(gin.config_str()))

  def __enter__(self) -> 'InBackground':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    self.close(failed=kind is not None)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Shows the scalars of one step."""
    if self._tracker is not None:
      self._call(self._tracker.write_scalars, step, values)

  def texts(self, step: int, values: Mapping[str, str]) -> None:
    """Shows texts in Markdown."""
    if self._tracker is not None and values:
      self._call(self._tracker.write_texts, step, values)

  def report(
    self, tables: Mapping[str, Table], files: Sequence[epath.Path]
  ) -> None:
    """Shows the tables of a comparison, and its files where they can be."""
    if isinstance(self._tracker, RunTracker):
      self._call(self._tracker.write_report, tables, files)
    else:
      self.texts(0, {name: table.markdown for name, table in tables.items()})

  def close(self, *, failed: bool) -> None:
    """Waits for all calls, and ends the tracker.

    Args:
      failed: Whether the run has raised.
    """
    if failed and isinstance(self._tracker, RunTracker):
      self._call(self._tracker.fail)
    elif self._tracker is not None:
      self._call(self._tracker.close)
    self._thread.shutdown(wait=True)
    self._check()

  def _call(self, method: Callable[..., None], *arguments: Any) -> None:
    self._check()
    self._calls.append(self._thread.submit(self._try, method, *arguments))

  def _try(self, method: Callable[..., None], *arguments: Any) -> None:
    """Calls a method in the thread, if none has raised before."""
    if self._works:
      self._works = False  # and so it stays if the method raises
      method(*arguments)
      self._works = True

  def _check(self) -> None:
    """Drops the tracker if a call has raised, and says so."""
    while self._calls and self._calls[0].done():
      error = self._calls.pop(0).exception()
      if error is not None:
        self._tracker = None
        progress.say(
          'TRACKER has failed, and the run goes on without it: '
          f'{type(error).__name__}: {" ".join(str(error).split())}'
        )


class Wandb:
  """Shows a run in Weights & Biases (https://wandb.ai), or records it offline.

  The run starts at the first call, in MODEL_DIR/wandb. A resumed run goes on
  with the same W&B run, whose id is in MODEL_DIR/wandb/run_id. If the service
  cannot be reached, or nobody is logged in, the run is recorded offline.

  W&B's own step only counts calls, since it takes no step twice. The x axis of
  all charts is the metric `step`.

  Args:
    model_dir: MODEL_DIR. One in a bucket has the recordings in ./wandb.
    project: WANDB_PROJECT, the project.
    entity: WANDB_ENTITY, the user or team; None means the user's default.
    group: WANDB_GROUP, the group of runs that it belongs to, or None.
    tags: WANDB_TAGS, its tags, or None.
    name: WANDB_NAME, its name; None means the name of the folder MODEL_DIR.
    mode: WANDB_MODE, 'online' or 'offline'.

  Raises:
    ValueError: The package is missing.
  """

  def __init__(
    self,
    *,
    model_dir: str,
    project: str = 'ipo_md',
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] | None = None,
    name: str | None = None,
    mode: Literal['online', 'offline'] = 'online',
  ):
    # A folder ./wandb with the recordings of other runs is found, too.
    found = importlib.util.find_spec('wandb')
    if found is None or found.origin is None:
      raise ValueError(
        'TRACKER = @trackers.Wandb() needs the package wandb: pip install '
        "'ipo_md[wandb]'."
      )
    self._model_dir = epath.Path(paths.absolute(model_dir, 'MODEL_DIR'))
    self._mode = mode
    self._settings = {
      'project': project,
      'entity': entity,
      'group': group,
      'tags': list(tags or ()),
      'name': name or self._model_dir.name,
    }
    self._wandb: Any = None
    self._run: Any = None

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Starts the run, with the bindings as its configuration."""
    self._wandb = importlib.import_module('wandb')
    self._wandb.setup(self._wandb.Settings(silent=True))
    self._run = self._start()
    self._run.define_metric(_STEP)
    self._run.define_metric('*', step_metric=_STEP)
    # W&B reads a dot as a level.
    values = {key.replace('.', '/'): value for key, value in hparams.items()}
    self._run.config.update(values, allow_val_change=True)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds a point to the chart of each scalar."""
    self._run.log({_STEP: step, **scalars})

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Adds the texts as the table `texts`."""
    table = Table(('name', 'text'), list(texts.items()))
    self._run.log({_STEP: step, 'texts': self._shown(table)})

  def write_report(
    self, tables: Mapping[str, Table], files: Sequence[epath.Path]
  ) -> None:
    """Adds the tables, and copies of the files."""
    for name, table in tables.items():
      self._run.log({name: self._shown(table)})
    folder = pathlib.Path(self._run.dir)
    for file in files:
      (folder / file.name).write_bytes(file.read_bytes())
      self._run.save(folder / file.name, base_path=folder, policy='now')

  def close(self) -> None:
    """Ends the run as a finished one."""
    self._run.finish()

  def fail(self) -> None:
    """Ends the run as a failed one."""
    self._run.finish(exit_code=1)

  def _start(self) -> Any:
    """Starts the run, offline if it has to be, and says where it is."""
    offline = 'WANDB_MODE' if self._mode == 'offline' else self._unreachable()
    run = self._init('offline' if offline else 'online')
    if offline:
      folder = pathlib.Path(run.dir).parent
      progress.say(
        f'Weights & Biases is offline ({offline}). Upload it later with: '
        f'wandb sync {folder}'
      )
    else:
      progress.say(f'Weights & Biases: {run.url}')
    return run

  def _unreachable(self) -> str:
    """Returns why runs cannot be uploaded, or ''."""
    try:
      if self._wandb.login(prompt=False):
        return ''
    except self._wandb.errors.CommError as error:
      return ' '.join(str(error).split()).rstrip('.')
    return "nobody is logged in: 'wandb login' or WANDB_API_KEY"

  def _init(self, mode: str) -> Any:
    folder = str(self._model_dir)
    return self._wandb.init(
      **self._settings,
      id=self._id(),
      resume='allow',
      mode=mode,
      dir=None if '://' in folder else folder,
      reinit='create_new',  # leaves a run of the user's own alone
      settings=self._wandb.Settings(
        console='off', silent=True, finish_timeout=_FINISH_SECONDS
      ),
    )

  def _id(self) -> str:
    path = self._model_dir / 'wandb' / 'run_id'
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()

  def _shown(self, table: Table) -> Any:
    rows = [list(row) for row in table.rows]
    return self._wandb.Table(columns=list(table.columns), data=rows)
