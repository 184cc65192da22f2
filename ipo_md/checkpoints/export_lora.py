"""The `export_lora` run, which writes the policy of a run with LoRA adapters.

The adapters are merged into the reference, or written alone in the format of
the PEFT library: adapter_config.json and adapter_model.safetensors, with the
names of Hugging Face's modules.
"""

from collections.abc import Mapping
import json
from typing import Any
from typing import Literal

from etils import epath
from flax import traverse_util
import numpy as np

from ipo_md import models
from ipo_md.checkpoints import arrays
from ipo_md.checkpoints import atomic
from ipo_md.checkpoints import convert
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import hf
from ipo_md.checkpoints import hf_fused
from ipo_md.checkpoints import hf_source
from ipo_md.checkpoints import locate
from ipo_md.checkpoints import safetensors_io
from ipo_md.core import types


def export(
  *,
  model: models.Lora,
  initial_checkpoint_path: str,
  reference_checkpoint_path: str,
  output_dir: str,
  output_format: locate.Format | Literal['peft'],
  step: int = 0,
  hf_source_path: str | None = None,
  context_length: int | None = None,
  bos_id: int | None = None,
  eos_id: types.EosId | None = None,
) -> None:
  """Writes the policy of a run with LoRA adapters.

  Args:
    model: Model of the run.
    initial_checkpoint_path: MODEL_DIR of the run, which holds the adapters.
    reference_checkpoint_path: Path of the run's reference, in any format.
    output_dir: Directory to write, which must not exist. It appears whole or
      not at all.
    output_format: 'peft' for the adapters alone; otherwise the format of the
      merged policy, see `formats`.
    step: Number of the checkpoint that is written.
    hf_source_path: See `convert.convert`, as for the other arguments. None
      takes `reference_checkpoint_path` if it is a Hugging Face directory.
    context_length: Longest sequence in tokens.
    bos_id: Id of the BOS token.
    eos_id: Id of the EOS token.

  Raises:
    ValueError: `output_dir` exists, a checkpoint is missing or of another
      model, or the run had another scale of the adapters.
  """
  adapters, flat = formats.open_checkpoint(
    initial_checkpoint_path,
    model.abstract_params,
    model.config,
    'INITIAL_CHECKPOINT_PATH',
  )
  _, directory = locate.detect(
    initial_checkpoint_path, 'INITIAL_CHECKPOINT_PATH'
  )
  theirs = (formats.metadata(directory).get('lora') or {}).get('scale')
  if theirs not in (None, model.scale):
    raise ValueError(
      f'LORA_ALPHA {model.alpha} / LORA_RANK {model.rank} is {model.scale}, '
      f'but it was {theirs} in the run of {initial_checkpoint_path}.'
    )
  base = model.base
  if output_format == 'peft':
    with atomic.new_directory(output_dir) as directory:
      _write_peft(directory, model, adapters, flat, reference_checkpoint_path)
    return
  reference, whole = formats.open_checkpoint(
    reference_checkpoint_path,
    base.abstract_params,
    base.config,
    'REFERENCE_CHECKPOINT_PATH',
  )
  merged = arrays.merged(reference, adapters, whole, model.scale)
  source = hf_source.Source(
    directory=convert.find_source(hf_source_path, reference_checkpoint_path),
    context_length=context_length,
    bos_id=bos_id,
    eos_id=eos_id,
  )
  with atomic.new_directory(output_dir) as directory:
    convert.write(
      directory, merged, whole, base.config, output_format, step, source
    )


def _write_peft(
  directory: epath.Path,
  model: models.Lora,
  adapters: arrays.Checkpoint,
  flat: Mapping[str, Any],
  reference: str,
) -> None:
  """Writes A^T and B^T, because Hugging Face's kernels are [out, in]."""
  base = traverse_util.flatten_dict(model.base.abstract_params, sep='/')
  source = hf_source.find(reference, 'REFERENCE_CHECKPOINT_PATH')
  kind = hf_source.model_type(source, model.config)
  layout = hf.layout(model.config, base, kind)
  pairs = {
    piece.name.removesuffix('.weight'): (
      adapters.read(f'{path}/a', piece.index).T,
      adapters.read(f'{path}/b', piece.index).T,
    )
    for path in base
    if f'{path}/a' in flat
    for piece in layout[path]
  }
  stored, counts = hf_fused.joined_adapters(kind, model.config, pairs)
  written = {
    f'base_model.model.{module}.lora_{letter}.weight': array
    for module, pair in stored.items()
    for letter, array in zip('AB', pair, strict=True)
  }
  safetensors_io.write(
    directory,
    {name: (x.shape, np.dtype(np.float32)) for name, x in written.items()},
    lambda name: written[name],
    file_name='adapter_model.safetensors',
  )
  config = {
    'peft_type': 'LORA',
    'task_type': 'SEQ_2_SEQ_LM'
    if isinstance(model.config, models.T5Config)
    else 'CAUSAL_LM',
    'base_model_name_or_path': reference,
    'r': model.rank,
    'lora_alpha': model.alpha,
    'lora_dropout': 0.0,
    'target_modules': sorted({name.rpartition('.')[2] for name in stored}),
    # A module that holds the adapters of n kernels has n times the rank.
    'rank_pattern': {name: n * model.rank for name, n in counts.items()},
    'alpha_pattern': {name: n * model.alpha for name, n in counts.items()},
    'bias': 'none',
    'inference_mode': True,
  }
  text = json.dumps(config, indent=2)
  (directory / 'adapter_config.json').write_text(text + '\n')
