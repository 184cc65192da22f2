"""What the tests of programs need."""

import pytest

from tasks.lib import sandbox


@pytest.fixture(scope='session')
def needs_a_sandbox():
  """Skips a test, with the reason, where programs cannot be run."""
  try:
    sandbox.check()
  except ValueError as error:
    pytest.skip(str(error))
