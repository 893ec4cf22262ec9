"""The desk's server: only on this machine by default, and protected by a token."""

import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response

from ..answers import AnswerFormat
from ..files import reading
from ..labels.ledger import AnnotationLedger
from .page import CSS, HEAD, THEME, build_page
from .session import DeskSession


def load_token(folder: Path) -> str:
    """The token of a run's desk. It is made once, so that open tabs survive a restart. Only its owner can read it."""
    path = folder / "desk-token"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        with reading(path, "Remove it, and another token is made."):
            token = path.read_text().strip()
        if token:
            return token
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    token = secrets.token_urlsafe(24)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def make_app(session: DeskSession, author: str, show_attempts: bool, token: str | None) -> FastAPI:
    """Build the web application. Requests need the token, unless `token` is `None`."""
    app = FastAPI(openapi_url=None)
    # Cookies do not distinguish ports, so the desks of two runs need different names.
    cookie = f"pivottrace-{secrets.token_hex(4)}" if token is None else f"pivottrace-{token[:8]}"

    @app.middleware("http")
    async def check_token(request: Request, call_next) -> Response:
        if token is None:
            return await call_next(request)
        given = request.query_params.get("token")
        if given is not None and secrets.compare_digest(given.encode(), token.encode()):
            # Remove the token from the address bar, and so from the history and screenshots.
            response: Response = RedirectResponse(str(request.url.remove_query_params("token")), status_code=303)
            response.set_cookie(cookie, token, httponly=True, samesite="strict", max_age=30 * 24 * 3600)
            return response
        if secrets.compare_digest(request.cookies.get(cookie, "").encode(), token.encode()):
            return await call_next(request)
        return PlainTextResponse("Open the address that `pivottrace desk` printed, with its token.", status_code=403)

    return gr.mount_gradio_app(
        app,
        build_page(session, author, show_attempts),
        path="/",
        theme=THEME,
        css=CSS,
        head=HEAD,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
    )


def serve(
    ledger: AnnotationLedger,
    author: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    show_attempts: bool = False,
    price: float = 0.0,
    has_token: bool = True,
    answer_format: AnswerFormat | str | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """
    Serve the desk until interrupted. Arguments and defaults are those of `pivottrace desk`. `announce` is called with
    a line that holds the address of the page.
    """
    # The address is taken first. If another desk has it, no page is built and no token is made.
    with listen(host, port) as listener:
        token = load_token(ledger.path.parent) if has_token else None
        app = make_app(DeskSession(ledger, answer_format, price), author, show_attempts, token)
        query = "" if token is None else f"?token={token}"
        announce(f"The desk is at http://{host}:{port}/{query} (Ctrl+C ends it; every answer is in {ledger.path})")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Bind an address; raises `ValueError` if it is not available."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Two sockets may be bound to an address, but only one listens.
        listener.listen(100)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(
            f"The desk cannot listen at {host}:{port} ({error}). Choose another `port` or `host`."
        ) from error
    return listener
