"""Tests of the table of macros."""

import math

import gin
import pytest

from ipo_md import __main__ as main
from ipo_md.core import macros


@pytest.fixture(autouse=True)
def _clear():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.mark.parametrize('name', sorted(macros.TABLE))
@pytest.mark.parametrize('value', [None, -1, 'word', (), math.nan, math.inf])
def test_names_the_macro_its_value_and_what_it_must_be(name, value):
  gin.bind_parameter(f'{name}/gin.macro.value', value)
  with pytest.raises(ValueError, match=f'^{name} = .*must be a') as error:
    macros.check()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['TRAIN_STEPS', 'BATCH_SIZE', 'TOP_K'])
@pytest.mark.parametrize('value', [8.0, 1e1])
def test_binds_whole_numbers_as_integers(name, value):
  gin.bind_parameter(f'{name}/gin.macro.value', value)
  macros.check()
  bound = gin.query_parameter(f'{name}/gin.macro.value')
  assert type(bound) is int
  assert bound == value


@pytest.mark.parametrize('name', ['TRAIN_STEPS', 'EVAL_EXAMPLES', 'BATCH_SIZE'])
def test_refuses_counts_of_zero(name):
  gin.bind_parameter(f'{name}/gin.macro.value', 0)
  with pytest.raises(ValueError, match=f'{name} = 0'):
    macros.check()


def test_a_users_own_macro_is_not_checked():
  gin.bind_parameter('MY_STEPS/gin.macro.value', -1)
  macros.check()


def test_error_text_drops_the_lines_of_gin_and_jax():
  error = ValueError(
    "Bad.\n  In call to configurable 'f' (<function f at 0x1>)"
  )
  error.add_note('For simplicity, JAX has removed its internal frames ...')
  error.add_note('A hint.')
  assert main.error_text(error) == 'Bad.\nA hint.'
