"""Figures that show where somebody looks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .optional_imports import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure"]


def new_figure(what: str, **options: Any) -> Figure:
    """Return a new figure of matplotlib's, for `what`, with its options.

    In a notebook, and where pyplot is imported, it is one of pyplot's: notebooks and
    ``plt.show()`` show it, ``plt.close()`` frees it. Elsewhere nothing keeps it.
    """
    if "matplotlib.pyplot" in sys.modules or "ipykernel" in sys.modules:
        figure: Figure = need("matplotlib.pyplot", what).figure(**options)
        return figure
    return need("matplotlib.figure", what).Figure(**options)  # type: ignore[no-any-return]
