"""The macros of the gin files: what each takes, and what it means.

docs/macros.md is made from this table (`python -m ipo_md.core.macros`).
"""

from collections.abc import Mapping

from ipo_md.core import macro_kinds as kinds
from ipo_md.core import run_macros
from ipo_md.core import task_macros

GROUPS: Mapping[str, Mapping[str, kinds.Macro]] = {
  **run_macros.GROUPS,
  **task_macros.GROUPS,
}

TABLE: Mapping[str, kinds.Macro] = {
  name: macro for group in GROUPS.values() for name, macro in group.items()
}
