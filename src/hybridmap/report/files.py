"""The former place of :func:`hybridmap.files.replace_file`."""

from hybridmap.files import replace_file

__all__ = ["replace_file"]
