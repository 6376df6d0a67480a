"""How many updates may be on their way at once: as many as the broker's queue and the memory hold. Pure.

Every chunk of a granted update may come to lie in the broker's queue for the coordinator before that reads
it, and what a full queue drops is dropped in silence (measured: of 1000 acknowledged uploads 13 arrived where
all sent at once). Too few grants leave a slow fleet idle: at 1 Mbit/s a node takes 7 s for 0.84 MB, so
that 1000 nodes take 12 minutes ten at a time, and three minutes 39 at a time.
"""

from typing import Final

from apiary.wire.chunks import count

MOST: Final = 64
ALWAYS: Final = 10
"""So many, whatever their size, where queue and memory hold them: measured with models of 14 MB, ten of which
took 140 MB of the broker."""
EAGER_BYTES: Final = 32 * 2**20
"""More than `ALWAYS` only while all together take no more than this of the broker's memory."""
SHARE: Final = 0.75
"""Of a queue: the rest is for control messages, and for chunks that are sent once more."""
MEMORY_SHARE: Final = 1 / 8
"""Of this machine's memory: the broker is mostly on the same."""

OUR_RECEIVE_MAXIMUM: Final = 100
OUR_QUEUE: Final = (10_000, 256 * 2**20)
"""Messages and bytes that wait for one client by `broker/mosquitto.conf`, which announces that maximum."""
OTHER_QUEUE: Final = (1_000, 256 * 2**20)
"""mosquitto's own default, for a broker that announces nothing else: there is no way to read it. The settings
`coordinator.queue_messages` and `queue_bytes` replace both."""


def most_uploads(
    update_bytes: int,
    receive_maximum: int,
    memory_bytes: int,
    *,
    queue_messages: int | None = None,
    queue_bytes: int | None = None,
) -> int:
    """From 1 to `MOST` uploads of `update_bytes` each; the broker announced `receive_maximum`, or 0.

    `queue_messages`, `queue_bytes`: what it queues for one client, where the settings say it.
    """
    known = OUR_QUEUE if receive_maximum == OUR_RECEIVE_MAXIMUM else OTHER_QUEUE
    messages, queue_bytes = queue_messages or known[0], queue_bytes or known[1]
    held = min(
        (receive_maximum + SHARE * messages) / count(update_bytes),
        SHARE * queue_bytes / update_bytes,
        MEMORY_SHARE * memory_bytes / update_bytes,
    )
    wanted = max(ALWAYS, EAGER_BYTES // update_bytes)
    return max(1, min(int(held), wanted, MOST))
