"""How completions are drawn, and the one function that draws them."""

from collections.abc import Sequence
import dataclasses

import jax

from ipo_md import models
from ipo_md.core import types
from ipo_md.sampling import mixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """Settings of the sampler.

  Attributes:
    max_new_tokens: MAX_NEW_TOKENS, T, the length of the longest completion.
    eos_id: EOS_ID, the token that ends a completion, or several of which any
      does.
    temperature: TEMPERATURE. Log-probabilities stay at temperature 1. At 0 the
      likeliest token is taken.
    top_k: TOP_K. 0 keeps all tokens.
    top_p: TOP_P. 1 keeps all tokens.
    int8: INT8_SAMPLING, whether the sampling loop reads kernels that are
      rounded to int8, half the bytes of bfloat16. The samples are then not
      quite the policy's own. Losses and log-ratios stay those of the policy and
      the reference themselves.

  Raises:
    ValueError: A setting is out of range.
  """

  max_new_tokens: int
  eos_id: types.EosId
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  int8: bool = False

  def __post_init__(self):
    mixture.validate(
      (0.0,), temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
    )

  @property
  def plain(self) -> 'Sampler':
    """The same sampler without temperature, top-k and top-p.

    An estimate of the KL divergence needs samples of the policy as it is.
    """
    return dataclasses.replace(self, temperature=1.0, top_k=0, top_p=1.0)


def complete(
  model: models.Model,
  policy: types.Params,
  prompts: types.Tokens,
  rng: jax.Array,
  *,
  sampler: Sampler,
  mixture_coefs: Sequence[float] = (0.0,),
  player: types.Params | None = None,
  contexts: tuple[types.Context | None, types.Context | None] = (None, None),
) -> mixture.Sampled:
  """Reads prompts and samples K completions of each.

    y_k ~ pi^(1 - b_k) player^b_k,   b = mixture_coefs

  Training, evaluation, inference and feedback from the host all draw through
  this function.

    sampled = complete(model, params, prompts, rng, sampler=sampler)

  Args:
    model: Network of policy and player.
    policy: Parameters of the policy (`Model.policy`).
    prompts: [B, P] tokens of the prompts.
    rng: Random key, consumed; or [B] keys, one for the completions of each
      prompt.
    sampler: Settings of the sampler.
    mixture_coefs: K weights of the player, one for each completion.
    player: Parameters of the second policy of the mixture, usually the
      reference. It is not read if all weights are 0.
    contexts: The prompts as policy and player read them, where they have been
      read already.

  Returns:
    The completions with their log-probabilities.

  Raises:
    ValueError: A weight is out of range, or there is no player for it.
  """
  mixture.validate(mixture_coefs)
  context, player_context = contexts
  if context is None:
    context = model.encode(policy, prompts)
  if not any(mixture_coefs):
    player = player_context = None
  elif player_context is None and player is not None:
    player_context = model.encode(player, prompts)
  return mixture.sample(
    model,
    policy,
    player,
    (context, player_context),
    rng,
    mixture_coefs=mixture_coefs,
    **dataclasses.asdict(sampler),
  )
