"""Scores from a server: one POST a batch, with limits on time and size. Certificates are checked, redirects refused.

-> {"prompts": [...], "completions": [...], "columns": [{...}, ...]}
<- {"scores": [0.5, null, ...]}
"""

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from relax import checks
from relax.errors import UserError

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_AGAIN = (429, 500, 502, 503, 504)
_MAX_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**16
_FIRST_PAUSE_SECONDS = 0.5


class EndpointError(RuntimeError):
    """The server gave no scores; says the address and the reason."""


class EndpointUnavailableError(EndpointError):
    """It may work the next time."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Prompts and the token go where the user said, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


class HttpEndpoint:
    """Scores that a server of yours computes.

    Args:
        url: Where to POST; https, or http.
        timeout_seconds: For one attempt as a whole.
        retries: Further attempts where the connection fails or the server says 429 or 5xx; pauses double from 0.5 s.
        columns: Columns of the rows to send along; by default none.
        token_variable: Environment variable whose content is sent as ``Authorization: Bearer``. Only its name is
            kept with the run.

    Raises:
        UserError: The address is no http(s) one, carries a password, or a token would travel unencrypted.
    """

    def __init__(
        self,
        url: str,
        timeout_seconds: float = 30.0,
        retries: int = 3,
        columns: Sequence[str] = (),
        token_variable: str | None = None,
    ) -> None:
        checks.positive(timeout_seconds=timeout_seconds)
        checks.between(0, 100, retries=retries)
        _check_address(url, token_variable)
        self.url, self.timeout_seconds, self.retries, self.columns = url, timeout_seconds, retries, tuple(columns)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token_variable is not None:
            self._headers["Authorization"] = f"Bearer {os.environ[token_variable]}"
        secure = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        self._opener = urllib.request.build_opener(secure, _NoRedirect)

    def __call__(self, prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[Any]:
        """One score a completion.

        Raises:
            EndpointError: No attempt gave any.
        """
        rows = [{name: columns[name][i] for name in self.columns if name in columns} for i in range(len(completions))]
        body = json.dumps({"prompts": prompts, "completions": completions, "columns": rows}).encode()
        for attempt in range(self.retries):
            try:
                return self._ask(body)
            except EndpointUnavailableError:
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
        return self._ask(body)

    def _ask(self, body: bytes) -> list[Any]:
        deadline = time.monotonic() + self.timeout_seconds
        request = urllib.request.Request(self.url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout_seconds) as response:
                return self._read_scores(self._read(response, deadline))
        except urllib.error.HTTPError as error:
            failure = EndpointUnavailableError if error.code in _AGAIN else EndpointError
            raise failure(f"{self._where} answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            untrusted = isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLError)
            failure = EndpointError if untrusted else EndpointUnavailableError
            raise failure(f"{self._where} cannot be reached ({type(error).__name__}: {error})") from None

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        """The body, unless it is too large or trickles in past the deadline: a socket's own limit is for one read."""
        body = bytearray()
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > _MAX_BYTES:
                raise EndpointError(f"{self._where} answered with more than {_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise EndpointUnavailableError(f"{self._where} took longer than {self.timeout_seconds:g} s to answer")
        if response.length:  # bytes that it announced
            raise EndpointUnavailableError(f"{self._where} cut its answer short")
        return bytes(body)

    def _read_scores(self, body: bytes) -> list[Any]:
        try:
            answer = json.loads(body)
        except ValueError:
            raise EndpointError(f"{self._where} answered no JSON: {body[:80]!r}") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
            raise EndpointError(f'{self._where} must answer {{"scores": [...]}}, and answered {body[:80]!r}')
        return list(answer["scores"])

    @property
    def _where(self) -> str:
        """Without the query, which may hold a key."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _check_address(url: str, token_variable: str | None) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--rewards: an endpoint's address begins with https:// or http://, got {url!r}")
    if parts.username is not None or parts.password is not None:
        raise UserError("--rewards: an endpoint's address is kept with the run; give a secret as token_variable")
    if token_variable is None:
        return
    if token_variable not in os.environ:
        raise UserError(f"--rewards: token_variable={token_variable} is not set in the environment")
    if parts.scheme == "http" and parts.hostname not in _LOCAL_HOSTS:
        raise UserError(f"--rewards: a token would travel unencrypted to {parts.hostname}; use https://")
