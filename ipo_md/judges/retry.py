"""Repeated attempts at a request, scheduled by `urllib3.Retry`."""

import random

import urllib3

LONGEST_WAIT = 900.0  # seconds that a busy server may hold up a request
_LONGEST_BACKOFF = 60.0  # seconds between two attempts
BUSY_STATUSES = (429, 529)  # 529: overloaded
_TRANSIENT_STATUSES = (408, 409, 425, 429, *range(500, 600))


class TransientError(Exception):
  """A failure that another attempt may cure.

  Attributes:
    delay: Seconds for which the server asks to wait, or None.
    busy: Whether the server only said that it is busy.
  """

  def __init__(
    self, message: str, delay: float | None = None, *, busy: bool = False
  ):
    super().__init__(message)
    self.delay, self.busy = delay, busy


class Retry(urllib3.Retry):
  """The failures of a request so far, and the delay before its next attempt."""

  @classmethod
  def of(cls, *, attempts: int, first_delay: float) -> 'Retry':
    """Returns the schedule of a request that has not failed yet.

    Args:
      attempts: Number of attempts, of any method.
      first_delay: Seconds before the second attempt. The delay doubles before
        each further one, up to a minute, and a random half is taken off.
    """
    return cls(
      total=attempts - 1,
      allowed_methods=None,
      status_forcelist=_TRANSIENT_STATUSES,
      backoff_factor=first_delay,
      backoff_max=_LONGEST_BACKOFF,
    )

  def after(self, error: TransientError, waited: float) -> 'Retry':
    """Records a failure. An answer that the server is busy is not an attempt.

    Args:
      error: The failure.
      waited: Seconds since the first attempt.

    Raises:
      urllib3.exceptions.MaxRetryError: No attempt is left, or the server was
        busy for more than LONGEST_WAIT.
    """
    if not error.busy:
      return self.increment(error=error)
    total = None if waited <= LONGEST_WAIT else 0
    return self.new(total=total).increment(error=error).new(total=self.total)

  def get_backoff_time(self) -> float:
    # urllib3 makes the second attempt at once and jitters by a constant.
    doublings = min(len(self.history) - 1, 100)
    delay = min(self.backoff_max, self.backoff_factor * 2.0**doublings)
    return delay * random.uniform(0.5, 1)

  def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
    try:
      return super().get_retry_after(response)
    except (urllib3.exceptions.InvalidHeader, ValueError):
      return None

  def parse_retry_after(self, retry_after: str) -> float:
    # Some servers send fractions of a second, which urllib3 rejects.
    try:
      return max(0.0, float(retry_after))
    except ValueError:
      return super().parse_retry_after(retry_after)
