"""What happens on the way of a `fit`: `Callback` says how to write one."""

from .protocol import Callback

__all__ = ["Callback"]
