"""Tests of the schedule of attempts at a request."""

import email.utils
import time

import pytest
import urllib3

from ipo_md.judges import retry as retry_lib


def schedule(attempts: int = 3, first_delay: float = 1.0) -> retry_lib.Retry:
  return retry_lib.Retry.of(attempts=attempts, first_delay=first_delay)


def test_the_delay_doubles_up_to_a_minute_and_half_of_it_is_random():
  retry = schedule(attempts=2000)
  for failures in range(1, 1500):
    retry = retry.after(retry_lib.TransientError('500'), waited=0)
    longest = min(60.0, 2.0 ** min(failures - 1, 10))
    assert longest / 2 <= retry.get_backoff_time() <= longest
  assert len({retry.get_backoff_time() for _ in range(9)}) > 1


def test_the_last_attempt_raises():
  fault = retry_lib.TransientError('500')
  retry = schedule().after(fault, waited=0).after(fault, waited=0)
  assert len(retry.history) == 2
  with pytest.raises(urllib3.exceptions.MaxRetryError):
    retry.after(fault, waited=0)


def test_a_busy_server_costs_no_attempt_until_patience_ends():
  busy = retry_lib.TransientError('429', busy=True)
  retry = schedule(attempts=1)
  for failures in range(20):
    assert len(retry.history) == failures
    retry = retry.after(busy, waited=retry_lib.LONGEST_WAIT)
  with pytest.raises(urllib3.exceptions.MaxRetryError):
    retry.after(busy, waited=retry_lib.LONGEST_WAIT + 1)
  with pytest.raises(urllib3.exceptions.MaxRetryError):
    retry.after(retry_lib.TransientError('500'), waited=0)


@pytest.mark.parametrize(
  ('header', 'delay'),
  [
    (None, None),
    ('7', 7),
    (' 7 ', 7),
    ('0.25', 0.25),
    ('-3', 0),
    ('nan', 0),
    ('soon', None),
    ('Sun, 06 Nov 1994 08:49:37 GMT', 0),
    ('Sun, 06 Nov 99999 08:49:37 GMT', None),
  ],
)
def test_retry_after(header, delay):
  headers = {} if header is None else {'Retry-After': header}
  response = urllib3.HTTPResponse(status=429, headers=headers)
  assert schedule().get_retry_after(response) == delay


def test_retry_after_a_date():
  date = email.utils.formatdate(time.time() + 100, usegmt=True)
  response = urllib3.HTTPResponse(status=429, headers={'Retry-After': date})
  delay = schedule().get_retry_after(response)
  assert delay == pytest.approx(100, abs=10)


@pytest.mark.parametrize(
  ('status', 'transient'),
  [(400, False), (404, False), (408, True), (413, False), (429, True)]
  + [(500, True), (529, True), (599, True)],
)
def test_transient_statuses(status, transient):
  assert schedule().is_retry('POST', status) is transient
