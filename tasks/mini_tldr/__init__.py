"""The embedded task. Importing this package registers its seqio tasks."""

from tasks.mini_tldr import tasks

__all__ = ['tasks']
