"""The SDK's HTTP, bounded: time-outs, few retries, no redirects, answers checked, downloads limited.

The SDK itself waits without end, retries a missing network for eight minutes, takes a failed job for a good
one and hands on whatever bytes come. Loaded by the child only.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from edgeimpulse_api import rest

CONNECT_S: Final = 10.0
"""Four tries with their pauses are 46 s: a host that swallows packets is named well below two minutes."""
PAUSE_S = 1.0
"""Tries wait 0, 2 and 4 times this."""
_RETRIES: Final = 3
_RETRIED: Final = (429, 500, 502, 503, 504)
_STATUS: Final = re.compile(r"/jobs/(\d+)/status$")
_SHOWN: Final = 200


class ApiError(Exception):
    """What the API did, in words for people; `retry` where the same again may do."""

    def __init__(self, message: str, *, retry: bool):
        super().__init__(message)
        self.retry = retry


@dataclass(frozen=True, slots=True)
class _Download:
    """As much of a response as the SDK reads of a download."""

    status: int
    headers: Any
    data: bytes


def bounded(request_s: float, max_bytes: int) -> type[rest.RESTClientObject]:
    """The SDK's transport with these bounds: put it into the place of `rest.RESTClientObject`."""

    class Bounded(rest.RESTClientObject):  # type: ignore[misc]  # the SDK has no types
        def __init__(self, configuration: Any, *arguments: Any, **more: Any):
            configuration.retries = urllib3.Retry(
                total=_RETRIES,
                backoff_factor=PAUSE_S,
                status_forcelist=_RETRIED,
                allowed_methods={"GET"},  # a repeated POST would start a second job
                redirect=False,  # the key's header would go along to wherever it points
                raise_on_status=False,
                respect_retry_after_header=False,  # it may say: in an hour
            )
            super().__init__(configuration, *arguments, **more)

        def request(self, method: str, url: str, **more: Any) -> Any:
            what = f"{method} {urlsplit(url).path}"
            timeout = (CONNECT_S, request_s)
            try:
                if method == "GET" and more.get("_preload_content") is False:
                    return self._download(url, more.get("headers"), what)
                answer = super().request(method, url, **more | {"_request_timeout": timeout})
            except rest.ApiException as e:
                raise _refused(what, e.status, e.reason, e.body) from None
            except urllib3.exceptions.HTTPError as e:
                raise ApiError(f"{what}: {_network(e)}", retry=True) from None
            body = _checked(what, answer.data)
            if method == "GET" and (job := _STATUS.search(urlsplit(url).path)):
                self._judge_job(url, job[1], body.get("job"), more.get("headers"))
            return answer

        def _download(self, url: str, headers: Any, what: str) -> _Download:
            response = self.pool_manager.request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=request_s),
            )
            try:
                # One byte more than allowed tells a large file from a too large one.
                data = b""
                parts = []
                room = max_bytes + 1
                while room > 0 and (data := response.read(min(room, 2**20))):
                    parts.append(data)
                    room -= len(data)
            finally:
                response.close()
            data = b"".join(parts)
            if not 200 <= response.status <= 299:
                raise _refused(what, response.status, response.reason, data)
            if len(data) > max_bytes:
                raise ApiError(
                    f"{what}: the download is larger than {max_bytes // 2**20} MB (publish.max_mb)",
                    retry=False,
                )
            return _Download(response.status, response.headers, data)

        def _judge_job(self, url: str, job: str, body: Any, headers: Any) -> None:
            """Raise for a job that ended badly: the SDK only looks whether it ended."""
            if not isinstance(body, dict) or not body.get("finished"):
                return
            if body.get("finishedSuccessful") is False:
                kind = str(body.get("category") or body.get("key") or "a job")[:80]
                log = self._log_of(url.removesuffix("/status") + "/stdout", headers)
                raise ApiError(f"{kind!r} (job {job}) failed at Edge Impulse{log}", retry=True)

        def _log_of(self, url: str, headers: Any) -> str:
            try:
                answer = super().request("GET", url, headers=headers, _request_timeout=(CONNECT_S, request_s))
                lines = [str(line["data"]).strip() for line in json.loads(answer.data)["stdout"]]
            except Exception:  # it only adds to a message that is raised anyway
                return "; its log could not be read"
            # The API gives the newest line first.
            return "; it says: " + " | ".join(line for line in reversed(lines[:5]) if line)[:500]

    return Bounded


def _checked(what: str, data: bytes) -> dict[str, Any]:
    """The JSON object that every answer must be, and a successful one."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        start = " ".join(data[:_SHOWN].decode(errors="replace").split())
        raise ApiError(
            f"{what}: expected JSON, came {start!r}: is publish.api_endpoint right, "
            "or does a proxy or a login page answer in its place?",
            retry=False,
        )
    if body.get("success") is not True:
        raise ApiError(
            f"{what}: Edge Impulse refuses: {str(body.get('error') or 'no reason given')[:500]}", retry=False
        )
    return body


def _refused(what: str, status: int | None, reason: Any, body: Any) -> ApiError:
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        detail = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        detail = "" if text.lstrip().startswith("<") else text
    detail = f"{status} {reason}" + (f": {' '.join(detail.split())[:_SHOWN]}" if detail else "")
    if status in (401, 403):
        return ApiError(
            f"{what}: Edge Impulse does not take the API key ({detail}): copy it again from the project's "
            "Dashboard, Keys; it must be a project's key",
            retry=False,
        )
    if status is not None and 300 <= status <= 399:
        return ApiError(
            f"{what}: {detail}, a redirect, which is not followed: set publish.api_endpoint", retry=False
        )
    if status in _RETRIED:
        return ApiError(f"{what}: Edge Impulse has a fault of its own ({detail})", retry=True)
    return ApiError(f"{what}: Edge Impulse refuses ({detail})", retry=False)


def _network(e: Exception) -> str:
    cause: BaseException = e
    if isinstance(e, urllib3.exceptions.MaxRetryError) and e.reason is not None:
        cause = e.reason
    match cause:
        case urllib3.exceptions.NameResolutionError():
            return "the name cannot be resolved: is this machine online?"
        case urllib3.exceptions.NewConnectionError():  # urllib3 counts it among the time-outs
            return f"no connection: {str(cause).rsplit('] ', 1)[-1]}: is anything listening there?"
        case urllib3.exceptions.SSLError():
            return (
                f"TLS fails: {str(cause)[:300]}: is this machine's clock right, does a proxy stand between?"
            )
        case urllib3.exceptions.ConnectTimeoutError():
            return f"no connection within {CONNECT_S:g} s: is this machine online, is there a firewall?"
        case urllib3.exceptions.ReadTimeoutError():
            return "it took the request and did not answer (publish.request_s)"
        case urllib3.exceptions.IncompleteRead() | urllib3.exceptions.ProtocolError():
            return f"the connection broke off: {cause}"
        case _:
            return str(cause).split(": ", 1)[-1][:300]
