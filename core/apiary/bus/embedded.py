"""The embedded broker, amqtt in a process of its own: `python -m apiary.bus.embedded --port N`.

For trying out where mosquitto is not installed: MQTT 3.1.1 only, nothing kept on disk, no access control,
ten to fifteen times mosquitto's CPU (measured). It listens on loopback.
"""

import argparse
import asyncio
import logging
import signal
import sys
from typing import Any, Final

from apiary.addresses import Address
from apiary.log_lines import LogLines
from apiary.process.child import die_with_parent

CONNECT_S: Final = 10.0
"""A connection that has not begun its CONNECT after this long is closed."""
_MAX_FIXED_HEADER: Final = 5
_PROTOCOL_NAME: Final = b"\x00\x04MQTT"
_MQTT_311: Final = 4
_UNACCEPTABLE_VERSION: Final = b"\x20\x02\x00\x01"  # CONNACK of MQTT 3.1.1, section 3.2.2.3


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m apiary.bus.embedded", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    args = parser.parse_args()
    die_with_parent()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LogLines())
    return asyncio.run(_serve(args.host, args.port))


class _Prefixed:
    """amqtt's reader, with the bytes that were read already put back in front."""

    def __init__(self, head: bytes, reader: Any):
        self._head = head
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        if not self._head or n < 0:
            head, self._head = self._head, b""
            return head + bytes(await self._reader.read(n))
        taken, self._head = self._head[:n], self._head[n:]
        if len(taken) < n:
            taken += await self._reader.read(n - len(taken))
        return taken

    def feed_eof(self) -> None:
        self._reader.feed_eof()


def _broker(host: str, port: int) -> Any:
    from amqtt.broker import Broker

    class Quiet(Broker):  # type: ignore[misc] # amqtt is not there at type-checking time
        """amqtt without two faults of 0.12."""

        async def _client_connected(self, listener_name: str, reader: Any, writer: Any) -> None:
            """Answer MQTT 5 at once that it is not spoken here.

            amqtt reads the whole CONNECT as 3.1.1 first; where version 5 brings a will, it waits for ever.
            """
            head = b""
            try:
                async with asyncio.timeout(CONNECT_S):
                    head = await reader.read(2)
                    while head[-1] & 0x80 and len(head) < _MAX_FIXED_HEADER:  # the remaining length goes on
                        head += await reader.read(1)
                    head += await reader.read(len(_PROTOCOL_NAME) + 1)
            except (EOFError, TimeoutError, OSError):
                await writer.close()
                return
            if head[-1 - len(_PROTOCOL_NAME) : -1] == _PROTOCOL_NAME and head[-1] > _MQTT_311:
                writer.write(_UNACCEPTABLE_VERSION)
                await writer.close()
                return
            await super()._client_connected(listener_name, _Prefixed(head, reader), writer)

        async def _publish_retained_messages_for_subscription(
            self, subscription: tuple[str, int], session: Any
        ) -> None:
            """Retained messages for this session's own subscription.

            At each connect amqtt calls this for everyone's subscriptions while it walks over them, so
            that a second client that subscribes meanwhile ends the first one's connection half made.
            """
            own = self._subscriptions.get(subscription[0], ())
            if any(other.client_id == session.client_id for other, _ in own):
                await super()._publish_retained_messages_for_subscription(subscription, session)

    address = str(Address(host, port))
    return Quiet(
        {
            "listeners": {"default": {"type": "tcp", "bind": address, "max_connections": 0}},
            # Only this one: the default list also logs every packet and publishes $SYS topics.
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )


async def _serve(host: str, port: int) -> int:
    try:
        broker = _broker(host, port)
    except ImportError as e:
        print(f"amqtt is not installed ({e}): pip install 'apiary-fl[demo]'", file=sys.stderr)
        return 4
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await broker.start()
    await stop.wait()
    await broker.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
