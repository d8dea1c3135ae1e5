"""HTTP server of the page for labeling, for the browser of this machine alone."""

import hmac
import json
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sft_lightning.utils.errors import InputError

HOST = "127.0.0.1"
_MAX_BODY = 65_536  # bytes of an answer


class LabelServer(ThreadingHTTPServer):
    """Server on the loopback address, whose paths begin with a random token.

    Other users of the machine do not know the token, and pages of other sites cannot ask in its name: requests with
    another `Host` are refused.
    """

    daemon_threads = True

    def __init__(
        self, port: int, page: str, read: Callable[[str, int], tuple[bytes, str]], answer: Callable[[Any], None]
    ) -> None:
        """Listen on a port.

        Args:
            port: Number of the port; 0 for a free one.
            page: HTML of the page.
            read: Function that returns the content and type of a file of an example, from the kind of the file (`image`
                or `clip`) and the number of the example; an `IndexError` is a 404.
            answer: Function that takes an answer as JSON values; a `ValueError` or `InputError` refuses it.

        Raises:
            InputError: The port cannot be used.
        """
        self.page, self.read, self.answer = page, read, answer
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} cannot be used ({error}): give another one, or 0 for a free one") from error
        self.hosts = {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds of an idle connection

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the address holds the token."""

    def do_GET(self) -> None:
        """Send the page, or a file of an example."""
        path = self._check()
        if path == "":
            self._send(200, self.server.page.encode(), "text/html; charset=utf-8")
        elif path is not None:
            kind, _, number = path.partition("/")
            try:
                if not number.isdecimal():
                    raise IndexError(path)
                content, media_type = self.server.read(kind, int(number))
            except IndexError:
                self._send(404, b"There is nothing at this address")
            except Exception as error:  # a file that broke since: the page goes on with the others
                self._send(500, str(error).encode())
            else:
                self._send(200, content, media_type)

    def do_POST(self) -> None:
        """Take an answer."""
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else _MAX_BODY + 1
        if size > _MAX_BODY:
            self.close_connection = True
            return self._send(413, b"The answer is too long")
        body = self.rfile.read(size)
        path = self._check()
        if path is None:
            return None
        if path != "answer" or self.headers.get("Content-Type") != "application/json":
            return self._send(404, b"There is nothing at this address")
        try:
            self.server.answer(json.loads(body))
        except (ValueError, InputError, RecursionError) as error:
            return self._send(400, str(error).encode())
        return self._send(200, b"saved")

    def _check(self) -> str | None:
        """Return the path behind the token, or refuse the request and return None."""
        _, token, *rest = [*self.path.split("/", 2), ""]
        is_known = hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if self.headers.get("Host") not in self.server.hosts or not is_known or "/" not in self.path[1:]:
            self._send(403, b"Open the address that the command printed")
            return None
        return str(rest[0])

    def _send(self, status: int, content: bytes, media_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": media_type,
            "Content-Length": str(len(content)),
            "Cache-Control": "private, max-age=3600" if media_type.startswith(("image/", "audio/")) else "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
