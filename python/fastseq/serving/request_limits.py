"""Bounds on what clients may send, and how slowly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

__all__ = ["RequestLimits"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class RequestLimits:
    """ASGI middleware: reads a request's whole body, within a size and a time, before the app runs.

    Parameters
    ----------
    app
        The app.
    most
        The most bytes of a body.
    timeout
        Seconds in which it must have come.
    hosts
        Names by which the server may be called; ``"*"``: any.
    """

    def __init__(self, app: App, most: int, timeout: float, hosts: Sequence[str]) -> None:
        self._app, self._most, self._timeout = app, most, timeout
        self._hosts = None if "*" in hosts else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._hosts is not None and _host(scope) not in self._hosts:
            return await _refuse(send, 400, f"this server is not called {_host(scope)!r}")
        task: Any = asyncio.current_task()
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            task.cancel()

        alarm = asyncio.get_running_loop().call_later(self._timeout, give_up)
        try:
            body = await self._body(scope, receive)
        except asyncio.CancelledError:
            if not late:
                raise
            text = f"the request's body did not come within {self._timeout:g} seconds"
            return await _refuse(send, 408, text)
        except ValueError:
            text = f"the request's body has more than {self._most} bytes: send fewer records"
            return await _refuse(send, 413, text)
        finally:
            alarm.cancel()
        if body is None:  # the client has hung up
            return None
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replayed() -> Message:
            nonlocal message
            if message is None:
                return await receive()
            found, message = message, None
            return found

        return await self._app(scope, replayed, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """Return the body; None: the client has hung up."""
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._most:
                raise ValueError
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                raise ValueError
            if not message.get("more_body", False):
                return b"".join(parts)


def _host(scope: Message) -> str:
    """Return the name by which a client has called the server, without the port."""
    for name, value in scope["headers"]:
        if name == b"host":
            text: str = value.decode("latin-1").lower()
            return text.rpartition("]")[0] + "]" if text.startswith("[") else text.split(":")[0]
    return ""


async def _refuse(send: Send, status: int, text: str) -> None:
    """Answer without having read all: the connection cannot be used again."""
    body = json.dumps({"detail": text}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
