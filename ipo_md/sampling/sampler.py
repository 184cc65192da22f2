"""How completions are drawn."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """How completions are drawn.

  Attributes:
    max_new_tokens: MAX_NEW_TOKENS.
    eos_id: EOS_ID.
    temperature: TEMPERATURE; 0 takes the likeliest token.
    top_k: TOP_K; 0 keeps all tokens.
    top_p: TOP_P; 1 keeps all tokens.
  """

  max_new_tokens: int
  eos_id: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  @property
  def plain(self) -> 'Sampler':
    """From the policy as it is: KL is over these samples."""
    return dataclasses.replace(self, temperature=1.0, top_k=0, top_p=1.0)
