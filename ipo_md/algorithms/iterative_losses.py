"""Objectives with a snapshot of the policy, in the form of `losses`.

Completions are sampled from the snapshot pi_t, which SNAPSHOT_STEPS updates
share, and the objective moves the policy from it by a step of known size:

  inpo   mirror descent towards the Nash equilibrium regularised by tau
  sppo   multiplicative weights towards that of the game itself
  rebel  regression of the change of log pi on a difference of rewards

`egpo` has no snapshot: `optim.extragradient` takes its gradient twice.

  rho_i^t = log pi(y_i | x) - log pi_t(y_i | x)     [B, K]
  rho_i   = log pi(y_i | x) - log pi_ref(y_i | x)   [B, K]
"""

import jax
import jax.numpy as jnp

from ipo_md.algorithms import loss_checks
from ipo_md.algorithms import losses
from ipo_md.algorithms import needs


@needs.declare(
  feedback='preference', completions=2, anchors=('reference', 'snapshot')
)
def inpo(
  log_ratios: jax.Array,
  preference: jax.Array,
  *,
  snapshot_log_ratios: jax.Array,
  tau: float,
  eta: float,
) -> jax.Array:
  """Iterative Nash policy optimisation.

    L = p (d - 1/(2 eta))^2 + (1 - p) (-d - 1/(2 eta))^2
    d = (tau/eta) h + (1 - tau/eta) h^t,   h = rho_1 - rho_2

  See https://arxiv.org/abs/2407.00617. If y_1 and y_2 are sampled from pi_t,
  the minimum is the step of mirror descent

    pi ∝ pi_ref^(tau/eta) pi_t^(1 - tau/eta) exp(P(y > pi_t) / eta)

  whose fixed point is the Nash equilibrium regularised by tau. With eta = tau
  this is `losses.ipo` on samples of the snapshot.

  Args:
    log_ratios: [B, 2] log-ratios of policy and reference, nats.
    preference: [B] probabilities P(y_1 > y_2 | x).
    snapshot_log_ratios: [B, 2] log-ratios of policy and snapshot, nats.
    tau: Weight of the divergence from the reference.
    eta: Inverse step size, at least tau.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('iterative_losses.inpo', tau=tau, eta=eta)
  if eta < tau:
    raise ValueError(
      f'iterative_losses.inpo.eta = {eta} (ETA) must be at least tau = {tau} '
      '(TAU).'
    )
  both = (tau / eta) * log_ratios + (1 - tau / eta) * snapshot_log_ratios
  return losses.ipo(both, preference, tau=eta)


@needs.declare(feedback='matrix', completions=2, anchors=('snapshot',))
def sppo(log_ratios: jax.Array, matrix: jax.Array, *, eta: float) -> jax.Array:
  """Self-play preference optimisation.

    L = (1/K) sum_i (rho_i^t - eta (Pbar_i - 1/2))^2
    Pbar_i = mean over k of P(y_i > y_k | x)

  See https://arxiv.org/abs/2405.00675. If all y are sampled from pi_t, the
  minimum approaches pi ∝ pi_t exp(eta P(y > pi_t)) as K grows. The mean holds
  P(y_i > y_i) = 1/2, so the step is (K - 1)/K of that. Its iterates circle
  around the equilibrium of a cyclic game, and their average approaches it.

  Args:
    log_ratios: [B, K] log-ratios of policy and snapshot, nats.
    matrix: [B, K, K] probabilities P(y_i > y_k | x).
    eta: Step size.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('iterative_losses.sppo', eta=eta)
  win_rates = jnp.mean(matrix, axis=-1)
  return jnp.mean(jnp.square(log_ratios - eta * (win_rates - 0.5)), axis=-1)


@needs.declare(
  feedback='rewards', completions=2, anchors=('snapshot', 'reference')
)
def rebel(
  log_ratios: jax.Array,
  rewards: jax.Array,
  *,
  reference_log_ratios: jax.Array,
  tau: float,
  eta: float,
) -> jax.Array:
  """Regression to relative rewards.

    L = (h^t - eta (R_1 - R_2))^2,   h^t = rho_1^t - rho_2^t
    R_i = r_i - tau (log pi_t(y_i | x) - log pi_ref(y_i | x))

  See https://arxiv.org/abs/2404.16767, of which this is eta^2 times the loss.
  The minimum on samples of pi_t is pi ∝ pi_t exp(eta R). Its fixed point is
  that of RL, pi ∝ pi_ref exp(r / tau).

  Args:
    log_ratios: [B, 2] log-ratios of policy and snapshot, nats.
    rewards: [B, 2] scores of the completions.
    reference_log_ratios: [B, 2] log-ratios of policy and reference, nats.
    tau: Weight of the divergence from the reference, in the reward.
    eta: Step size.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('iterative_losses.rebel', tau=tau, eta=eta)
  loss_checks.require_rewards('iterative_losses.rebel', log_ratios, rewards, 2)
  if log_ratios.shape[1] != 2:
    raise ValueError(
      f'iterative_losses.rebel compares 2 completions of a prompt, not '
      f'{log_ratios.shape[1]} (MIXTURE_COEFS has one entry for each).'
    )
  drift = jax.lax.stop_gradient(reference_log_ratios - log_ratios)
  target = rewards - tau * drift
  h = log_ratios[:, 0] - log_ratios[:, 1]
  return jnp.square(h - eta * (target[:, 0] - target[:, 1]))


@needs.declare(feedback='matrix', completions=3)
def egpo(log_ratios: jax.Array, matrix: jax.Array, *, tau: float) -> jax.Array:
  """Extragradient preference optimisation.

    L = (h - (P(y_1 > y_3 | x) - P(y_2 > y_3 | x)) / tau)^2,   h = rho_1 - rho_2

  See https://arxiv.org/abs/2503.08942. y_3 is sampled from the policy, and y_1
  and y_2 from any policy that samples everything. The gradient is 0 only at

    pi ∝ pi_ref exp(P(y > pi) / tau),

  the Nash equilibrium regularised by tau. With the plain gradient this is the
  paper's Online IPO 1, which circles at step sizes at which the extragradient
  converges.

  Args:
    log_ratios: [B, 3] log-ratios of policy and reference, nats.
    matrix: [B, 3, 3] probabilities P(y_i > y_k | x).
    tau: Weight of the divergence from the reference.

  Returns:
    [B] losses.
  """
  loss_checks.require_positive('iterative_losses.egpo', tau=tau)
  if log_ratios.shape[1] != 3:
    raise ValueError(
      f'iterative_losses.egpo needs 3 completions of a prompt, not '
      f'{log_ratios.shape[1]} (MIXTURE_COEFS has one entry for each).'
    )
  target = (matrix[:, 0, 2] - matrix[:, 1, 2]) / tau
  return jnp.square(log_ratios[:, 0] - log_ratios[:, 1] - target)
