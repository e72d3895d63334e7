"""A server for saved models, and its client.

`make_app` returns the app, `serve` runs it, and the shell's is ``fastseq serve``. Both need
``pip install 'fastseq-torch[serve]'``; `batch_predict` needs urllib3 and pandas only.
"""

from typing import TYPE_CHECKING, Any

from .batch_predict import batch_predict

if TYPE_CHECKING:
    from .app import make_app
    from .server import serve

__all__ = ["batch_predict", "make_app", "serve"]


def __getattr__(name: str) -> Any:  # FastAPI is imported on use: clients do not need it
    if name not in ("make_app", "serve"):
        raise AttributeError(f"module 'fastseq.serving' has no attribute {name!r}")
    from .app import make_app
    from .server import serve

    return {"make_app": make_app, "serve": serve}[name]


def __dir__() -> list[str]:
    return __all__
