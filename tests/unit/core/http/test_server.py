"""The server by real sockets: who is answered while others are slow, and what is never read."""

from __future__ import annotations

import contextlib
import datetime
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from apiary.http.connection import BodyAllowance, Environ
from apiary.http.places import HttpLimits
from apiary.http.server import HttpServer

PATIENCE_S = 30.0
"""Until a test gives up; nothing here should take as long."""
LARGE = 16 * 2**20
"""More than both ends of a connection hold."""
WHOLE = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class App:
    """Answers with the length of the body; a path `/wait` is answered once `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.working = threading.Semaphore(0)
        self.bodies: list[bytes] = []

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/wait":
            self.working.release()
            self.go.wait(PATIENCE_S)
        if environ["PATH_INFO"] == "/bug":
            raise ValueError("a bug")
        body = environ["wsgi.input"].read()
        self.bodies.append(body)
        answer = bytes(LARGE) if environ["PATH_INFO"] == "/large" else str(len(body)).encode()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [answer]

    @staticmethod
    def allowance(environ: Environ) -> BodyAllowance:
        """Who says `Key: right` is known, and may send 1000 bytes; anybody else 10."""
        known = environ.get("HTTP_KEY") == "right"
        return BodyAllowance(1000 if known else 10, known)


@pytest.fixture
def app() -> App:
    return App()


Serve = Callable[..., HttpServer]


@pytest.fixture
def serve(app: App) -> Iterator[Serve]:
    running: list[tuple[HttpServer, threading.Thread]] = []

    def start(**limits: Any) -> HttpServer:
        server = HttpServer(
            app,
            "127.0.0.1",
            0,
            allowance=app.allowance,
            context=limits.pop("context", None),
            limits=HttpLimits(**limits),
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    app.go.set()
    for server, thread in running:
        server.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def connected(server: HttpServer, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_connection(
        ("127.0.0.1", server.port), PATIENCE_S, source_address=(address, 0)
    ) as link:
        yield link


def everything(link: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := link.recv(65536):
            got += data
    return got


def ask(server: HttpServer, request: bytes = WHOLE, address: str = "127.0.0.1") -> bytes:
    with connected(server, address) as link, contextlib.suppress(ConnectionResetError):
        link.sendall(request)
        return everything(link)
    return b""


def post(length: int, *headers: str, path: str = "/", body: bytes | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", f"Content-Length: {length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (bytes(length) if body is None else body)


def is_hung_up(link: socket.socket) -> bool:
    return everything(link) == b""


@pytest.mark.parametrize("owner", ["127.0.0.1", "127.0.0.9"], ids=["same-address", "another-address"])
def test_the_owner_is_answered_while_fifty_trickle_and_fifty_hold_still(serve: Serve, owner: str) -> None:
    server = serve(head_s=3600)
    with contextlib.ExitStack() as here:
        links = [here.enter_context(connected(server)) for _ in range(100)]
        for link in links[::2]:
            with contextlib.suppress(OSError):  # those before the newest are hung up on
                link.sendall(b"GET / HT")
        assert b"200 OK" in ask(server, address=owner)


def test_a_trickle_does_not_extend_the_time_for_a_head(serve: Serve) -> None:
    server = serve(head_s=0.3)
    with connected(server) as link:
        link.settimeout(0.02)
        for _ in range(1000):
            with contextlib.suppress(TimeoutError):
                assert link.send(b"G") == 1
                if link.recv(1) == b"":
                    return
    pytest.fail("it was read on and on")


def test_a_body_of_a_sender_who_is_not_known_counts_to_the_same_time(serve: Serve, app: App) -> None:
    server = serve(head_s=0.3, body_s=3600)
    with connected(server) as link:
        link.sendall(post(10, body=b"12345"))
        assert is_hung_up(link)
    assert app.bodies == []


def test_a_known_senders_body_has_a_time_of_its_own(serve: Serve, app: App) -> None:
    slow = serve(head_s=3600, body_s=0.3)
    with connected(slow) as link:
        link.sendall(post(10, "Key: right", body=b"12345"))
        assert is_hung_up(link)
    assert app.bodies == []


def test_who_does_not_take_the_answer_is_hung_up_on(serve: Serve) -> None:
    server = serve(answer_s=0.3)
    with connected(server) as link:
        link.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        assert link.recv(12) == b"HTTP/1.1 200"
        until = time.monotonic() + PATIENCE_S
        while any(re.fullmatch(r"http-\d+", t.name) for t in threading.enumerate()):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert len(everything(link)) < LARGE


@pytest.mark.parametrize(
    ("length", "key", "read"), [(10, "", 10), (11, "", 0), (1000, "right", 1000), (1001, "right", 0)]
)
def test_a_body_is_read_where_its_head_allows_it(
    serve: Serve, app: App, length: int, key: str, read: int
) -> None:
    answer = ask(serve(), post(length, f"Key: {key}"))
    assert answer.endswith(b"\r\n\r\n" + str(read).encode())
    assert app.bodies == [bytes(read)]


def test_a_body_that_is_not_allowed_is_answered_before_it_comes(serve: Serve) -> None:
    server = serve(head_s=3600)
    with connected(server) as link:
        link.sendall(post(10**9, body=b""))
        assert link.recv(12) == b"HTTP/1.1 200"


def test_who_waits_for_leave_to_send_a_body_gets_it(serve: Serve, app: App) -> None:
    server = serve()
    with connected(server) as link:
        link.sendall(post(5, "Expect: 100-continue", body=b""))
        assert link.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        link.sendall(b"12345")
        assert b"200 OK" in everything(link)
    assert app.bodies == [b"12345"]


@pytest.mark.parametrize(("size", "status"), [(1024, b"200"), (1025, b"431")])
def test_a_head_is_bounded(serve: Serve, size: int, status: bytes) -> None:
    server = serve(max_head_bytes=1024)
    start = b"GET / HTTP/1.1\r\nX: "
    answer = ask(server, start + b"x" * (size - len(start)) + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_bodies_in_hand_are_bounded_together(serve: Serve, app: App) -> None:
    server = serve(max_held_bytes=1000, workers=4)
    with connected(server) as first:
        first.sendall(post(600, "Key: right", path="/wait"))
        assert app.working.acquire(timeout=PATIENCE_S)
        assert ask(server, post(401, "Key: right")).startswith(b"HTTP/1.1 503")
        assert ask(server, post(400, "Key: right")).startswith(b"HTTP/1.1 200")
        app.go.set()
        assert b"200 OK" in everything(first)
    assert ask(server, post(1000, "Key: right")).startswith(b"HTTP/1.1 200")


def test_an_address_keeps_its_share_and_its_oldest_gives_way(serve: Serve) -> None:
    server = serve(max_of_address=2, max_connections=8, head_s=3600)
    with connected(server) as first, connected(server) as second, connected(server) as third:
        assert is_hung_up(first)
        for link in (second, third):
            link.sendall(WHOLE)
            assert b"200 OK" in everything(link)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Of a server, with a certificate of its own making."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    ends = now + datetime.timedelta(days=1)
    certificate = builder.not_valid_before(now).not_valid_after(ends).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    file: Path = tmp_path_factory.mktemp("tls") / "both.pem"
    form = serialization.PrivateFormat.PKCS8
    file.write_bytes(
        key.private_bytes(pem, form, serialization.NoEncryption()) + certificate.public_bytes(pem)
    )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


class Handshake:
    """A peer's side of TLS, a step at a time."""

    def __init__(self, link: socket.socket):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._link = link
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)

    def step(self) -> bool:
        """Send what is due; whether the handshake is over."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._link.sendall(self._out.read())
        return True

    def hear(self) -> None:
        """Take what came; raises EOFError where the server hung up."""
        data = self._link.recv(65_536)
        if not data:
            raise EOFError
        self._in.write(data)

    def ask(self) -> bytes:
        """The beginning of the answer to a whole request."""
        self._tls.write(WHOLE)
        self._link.sendall(self._out.read())
        while True:
            try:
                return self._tls.read(65_536)
            except ssl.SSLWantReadError:
                self.hear()


def test_who_is_hung_up_on_in_its_handshake_is_gone_at_once(serve: Serve, context: ssl.SSLContext) -> None:
    server = serve(context=context, max_of_address=1, head_s=10 * PATIENCE_S)
    with connected(server) as first:
        first.sendall(b"\x16\x03\x01")
        with connected(server):
            assert is_hung_up(first)


def test_an_owner_in_its_handshake_outlasts_those_that_say_nothing(
    serve: Serve, context: ssl.SSLContext
) -> None:
    server = serve(context=context, max_of_address=2)
    with contextlib.ExitStack() as here:
        link = here.enter_context(connected(server))
        owner = Handshake(link)
        assert not owner.step()
        owner.hear()  # an answer: the server has the whole of what begins it
        silent = [here.enter_context(connected(server)) for _ in range(20)]
        assert all(is_hung_up(one) for one in silent[:-1])
        while not owner.step():
            owner.hear()
        assert owner.ask().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_what_has_come_is_read_before_the_next_connection_is_taken(
    app: App, context: ssl.SSLContext, tls: bool
) -> None:
    """However late the server is: who has sent a whole request, or ClientHello, keeps its place."""
    limits = HttpLimits(max_of_address=2)
    server = HttpServer(app, "127.0.0.1", 0, limits=limits, context=context if tls else None)
    thread = threading.Thread(target=server.run)
    with contextlib.ExitStack() as here:
        link = here.enter_context(connected(server))
        owner = Handshake(link)
        if tls:
            owner.step()
        else:
            link.sendall(WHOLE)
        silent = [here.enter_context(connected(server)) for _ in range(50)]
        thread.start()
        try:
            assert all(is_hung_up(one) for one in silent[:-2])
            while tls and not owner.step():
                owner.hear()
            assert (owner.ask() if tls else everything(link)).startswith(b"HTTP/1.1 200")
        finally:
            server.close()
            thread.join(PATIENCE_S)


def test_the_server_keeps_its_places_and_the_greediest_address_gives_way(serve: Serve) -> None:
    server = serve(max_of_address=2, max_connections=3, head_s=3600)
    with (
        connected(server, "127.0.0.2") as alone,
        connected(server, "127.0.0.3") as first,
        connected(server, "127.0.0.3") as second,
    ):
        assert b"200 OK" in ask(server, address="127.0.0.4")
        assert is_hung_up(first)
        for link in (alone, second):
            link.sendall(WHOLE)
            assert b"200 OK" in everything(link)


def test_who_is_known_or_being_answered_does_not_give_way(serve: Serve, app: App) -> None:
    server = serve(max_of_address=2, max_connections=2, workers=2)
    with connected(server) as known, connected(server) as answered:
        known.sendall(post(5, "Key: right", "Expect: 100-continue", body=b""))
        assert known.recv(100).startswith(b"HTTP/1.1 100")
        answered.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
        assert app.working.acquire(timeout=PATIENCE_S)
        assert ask(server) == b""
        known.sendall(b"12345")
        assert b"200 OK" in everything(known)
        app.go.set()
        assert b"200 OK" in everything(answered)
    assert b"200 OK" in ask(server)


def test_who_has_its_answer_and_sends_on_gives_way(serve: Serve) -> None:
    """A body that is not read is still on its way when its sender has been refused."""
    server = serve(max_of_address=2)
    with contextlib.ExitStack() as here:
        for _ in range(6):
            link = here.enter_context(connected(server))
            link.sendall(post(10**9, body=b""))
            assert link.recv(12) == b"HTTP/1.1 200"
        assert b"200 OK" in ask(server)


def test_an_error_of_the_application_is_answered_and_the_next_request_too(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(workers=1)
    answer = ask(server, b"GET /bug HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500") and b"a bug" not in answer
    assert "a bug" in caplog.text
    assert b"200 OK" in ask(server)


def test_closing_hangs_up_on_everybody(serve: Serve) -> None:
    server = serve(head_s=3600)
    with connected(server) as link:
        link.sendall(b"GET / ")
        ask(server)  # the one before has been taken by now
        server.close()
        assert is_hung_up(link)
