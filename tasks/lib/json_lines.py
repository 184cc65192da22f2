"""Reads JSON lines, with errors that name the file, the row and the field."""

from ipo_md.core.row_files import BadRow
from ipo_md.core.row_files import field
from ipo_md.core.row_files import max_bad_rows
from ipo_md.core.row_files import number
from ipo_md.core.row_files import read

__all__ = ['BadRow', 'field', 'max_bad_rows', 'number', 'read']
