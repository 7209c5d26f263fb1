# SPDX-License-Identifier: MIT
"""Puts the patched files to work without taking ``main.py`` over.

The marked block at the end of ``main.py`` calls ``install(app, globals())``. Our layers then lie outside everything
that the application itself installed, whatever it adds afterwards, because Starlette builds its middleware stack only
when the first request or the lifespan arrives:

    CORS                  answers preflights; adds headers also to errors of everything inside
      system health       /api/v1/system/*, /livez, /readyz, /metrics; has its own protection
        WebSocket guard   app/wheels_ops/websocket: limits before accept, long poll; registers the sessions
          request metrics
            the application with its own middlewares
              endpoint -> app/core/websocket_manager: connections, heartbeat, bounded sending, drain

A layer whose module is missing or broken is left out with an error in the log: the backend must start with whatever
subset of our files it finds. One thing does stop the start: a CORS policy that cannot be right.
"""

from __future__ import annotations

import importlib
import logging
import signal
import typing as t

Scope = t.MutableMapping[str, t.Any]
Receive = t.Callable[[], t.Awaitable[t.MutableMapping[str, t.Any]]]
Send = t.Callable[[t.MutableMapping[str, t.Any]], t.Awaitable[None]]
ASGIApp = t.Callable[[Scope, Receive, Send], t.Awaitable[None]]

#: Innermost first: module and class of each layer.
LAYERS: t.Tuple[t.Tuple[str, str], ...] = (
    ("app.core.performance_monitor", "RequestMetricsMiddleware"),
    ("app.wheels_ops.websocket.guard", "WebSocketGuard"),
    ("app.api.v1.system_health", "SystemHealthMiddleware"),
    ("app.core.cors_config", "CORSMiddleware"),
)
#: Modules with ``async startup()`` and ``async shutdown()``, started in this order and stopped in the reverse one.
SERVICES: t.Tuple[str, ...] = (
    "app.services.cache_service",
    "app.monitoring.memory_optimizer",
    "app.core.performance_monitor",
    "app.core.websocket_manager",
    "app.services.tts.fallback_tts",
    "app.services.tts.tts_service",
    "app.api.v1.system_health",
)
_MARK = "_wheels_ops_installed"
log = logging.getLogger("app.wheels_ops")


def install(app: t.Any, namespace: t.Optional[t.MutableMapping[str, t.Any]] = None) -> t.Any:
    """Wraps a FastAPI or Starlette application in place and gives it back. A second call changes nothing.

    ``namespace`` is that of the module that holds the application; names which its routes use and it lacks are put
    there.
    """
    if namespace is not None:
        _supply_names(namespace)
    if getattr(app, _MARK, False):
        return app
    setattr(app, _MARK, True)
    build = app.build_middleware_stack

    def build_middleware_stack() -> ASGIApp:
        stack: ASGIApp = Lifespan(build())
        for module_name, class_name in LAYERS:
            layer = _find(module_name, class_name)
            if layer is not None:
                stack = layer(stack)
        return stack

    app.build_middleware_stack = build_middleware_stack
    # Built before us: it is built anew, with our layers, on the next request.
    app.middleware_stack = None
    return app


def _supply_names(namespace: t.MutableMapping[str, t.Any]) -> None:
    """The August release's ``main.py`` uses ``cors_config`` and never imports it: its CORS routes and its catch-all for
    OPTIONS end in a NameError. A name that the module has, whatever it means there, stays."""
    config = _find("app.core.cors_config", "cors_config")
    if config is not None:
        namespace.setdefault("cors_config", config)


def install_celery(namespace: t.Mapping[str, t.Any]) -> None:
    """Does the same for the Celery application that a module's namespace holds, whatever it is called there."""
    from celery import Celery

    install_into = _find("app.wheels_ops.celery_throttle", "install")
    if install_into is None:
        return
    for value in list(namespace.values()):
        if isinstance(value, Celery):
            install_into(value)
            return
    log.error("wheels.ops: no Celery application in %s, background work is not throttled", namespace.get("__name__"))


def plain_redis_url(namespace: t.Mapping[str, t.Any]) -> None:
    """Makes ``REDIS_URL`` of the settings a string again.

    The August release parses it into an object as soon as the environment sets it. Celery then cannot start at all, and
    nothing that looks into the address, as into a string, connects to Redis.
    """
    settings = namespace.get("settings")
    url = getattr(settings, "REDIS_URL", None)
    if settings is None or url is None or isinstance(url, str):
        return
    # Past pydantic's own assignment, which would parse it again.
    settings.__dict__["REDIS_URL"] = str(url)


def _find(module_name: str, name: str) -> t.Any:
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if getattr(error, "stops_the_start", False):
            raise
        # A missing module or name says so itself: a file was not copied, or the release's own is in its place.
        trace = None if isinstance(error, ImportError) else error
        log.error("wheels.ops: %s cannot be imported, its part is left out: %s", module_name, error, exc_info=trace)
        return None
    return getattr(module, name, None)


class Lifespan:
    """Starts our services after the application has started, and stops them before it stops."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        running: t.List[str] = []
        # Taken now: later the WebSocket manager's own handler stands before that of the server.
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)

        def is_told_to_end() -> bool:
            """During the start uvicorn only notes SIGTERM and SIGINT, and ends after it without
            ``lifespan.shutdown``."""
            return getattr(server, "should_exit", False) is True

        async def stop() -> None:
            while running:
                await _call(running.pop(), "shutdown")

        async def receiving() -> t.MutableMapping[str, t.Any]:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await stop()
            return message

        async def sending(message: t.MutableMapping[str, t.Any]) -> None:
            if message["type"] == "lifespan.startup.complete":
                for name in SERVICES:
                    if is_told_to_end():
                        break
                    if await _call(name, "startup"):
                        running.append(name)
                if is_told_to_end():  # without this the history would call it a crash
                    log.info("wheels.ops: told to end during the start, our services are stopped")
                    await stop()
            await send(message)

        await self.app(scope, receiving, sending)


async def _call(module_name: str, name: str) -> bool:
    """Awaits a module's hook; its failure is logged and never stops the application."""
    hook = _find(module_name, name)
    if hook is None:
        return False
    try:
        await hook()
    except Exception:
        log.exception("wheels.ops: %s.%s failed", module_name, name)
        return False
    return True
