"""What the broker must know of each change: its files, a reload, the end of a revoked party's connections.

mosquitto 2.0.11, measured: on SIGHUP it reads its list of revoked certificates and its access list again, and
holds both against connections that stand. But it leaves those connections open: a revoked party cannot
say or hear anything any more and sits there. Its dynamic security plugin, otherwise unused, ends them.
"""

import json
import logging
import secrets
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from apiary.bus.bus import Connected, Disconnected, PublishRefused, Received
from apiary.bus.mqtt import MqttBus
from apiary.errors import ApiaryError, BusError
from apiary.files import write_atomic
from apiary.identity.rights import access_list
from apiary.identity.roles import Role
from apiary.settings import Settings
from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary.wire.topics import TopicKind, Topics
from apiary_cli.pki.folder import WARDEN, CaFolder

CONTROL: Final = "$CONTROL/dynamic-security/v1"
_RELOAD_S: Final = 20.0
_KICK_S: Final = 10.0
_CLEAR_S: Final = 30.0
_QUIET_S: Final = 0.5
"""mosquitto sends what is retained right after the subscription."""
log = logging.getLogger(__name__)


def acl(ca: CaFolder, settings: Settings) -> str:
    """The broker's access list for everyone who is enrolled now."""
    old = settings.pki.old_chunk_topics
    names: dict[Role, set[str]] = {role: set() for role in Role}
    # Whether a certificate is over is for TLS to judge: a clock that is wrong here takes nobody's rights.
    for name, role in ca.index().roles().items():
        names[role].add(name)
    return access_list(
        coordinators=names[Role.COORDINATOR],
        operators=names[Role.OPERATOR] - {WARDEN},
        viewers=names[Role.VIEWER],
        wardens={WARDEN},
        shut_out=ca.revoked_names(),
        extra=settings.pki.acl_extra,
        places=[
            Topics(name, settings.root, settings.blob_root)
            for name in settings.pki.federations or [settings.federation]
        ],
        old_chunk_topics=ca.knows_old_nodes if old is None else old,
    )


def apply(ca: CaFolder, settings: Settings, *, revoked: Iterable[str] = ()) -> list[str]:
    """Tell the broker; what went wrong, in words. The authority's own folder is right in any case."""
    trouble = []
    pki = settings.pki
    try:
        if pki.broker_dir is not None:
            _take_back(ca, pki.broker_dir / "crl.pem")
            write_atomic(pki.broker_dir / "ca.pem", ca.ca_pem, mode=0o644)
            write_atomic(pki.broker_dir / "crl.pem", ca.crl, mode=0o644)
            write_atomic(pki.broker_dir / "acl.conf", acl(ca, settings).encode(), mode=0o644)
        if pki.reload:
            done = subprocess.run(
                pki.reload,
                capture_output=True,
                text=True,
                timeout=_RELOAD_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            if done.returncode:
                why = done.stderr.strip()[:200]
                trouble.append(f"pki.reload {pki.reload} ended with {done.returncode}: {why}")
        names = sorted(set(revoked))
        if names and pki.kick:
            kick(ca, settings, names)
    except (OSError, subprocess.TimeoutExpired) as e:
        trouble.append(f"pki.reload {pki.reload}: {e}")
    except ApiaryError as e:
        trouble.append(str(e))
    return trouble


def _take_back(ca: CaFolder, published: Path) -> None:
    """Revoke here too what the list that the broker has names. Raises SettingsError with the key locked.

    It names more where the authority was restored from a backup: to publish less would let somebody in.
    """
    try:
        if found := ca.absorb(published.read_bytes()):
            log.warning("pki: %s named %d certificates that the authority had forgotten", published, found)
    except FileNotFoundError:
        pass
    except ValueError as e:
        log.warning("pki: %s is replaced: %s", published, e)


def kick(ca: CaFolder, settings: Settings, names: list[str]) -> None:
    """End the connections of `names` at the broker. Raises BusError where it does not confirm it."""
    # The plugin ends the connections of a user that it creates or deletes, and knows nobody in between.
    commands = []
    for name in names:
        create = {"command": "createClient", "username": name, "password": secrets.token_hex(16)}
        commands += [create, {"command": "deleteClient", "username": name}]
    own = ca.folder / "warden" / "tls"
    # Both authorities while one is replaced: the broker may show a certificate of either.
    trusted = ca.folder / "trusted.pem"
    write_atomic(trusted, ca.ca_pem)
    broker = settings.broker.model_copy(
        update={"tls_ca": trusted, "tls_cert": own / "cert.pem", "tls_key": own / "key.pem"}
    )
    bus = MqttBus(broker, f"{WARDEN}-{secrets.token_hex(8)}")
    nodes = sorted({i.name for i in ca.issued() if i.role is Role.NODE} & set(names))
    sent, why, end = False, "no answer", time.monotonic() + _KICK_S
    try:
        bus.subscribe(f"{CONTROL}/response")
        while time.monotonic() < end:
            for event in bus.poll(0.1):
                match event:
                    case Connected() if not sent:
                        sent = bus.publish(CONTROL, json.dumps({"commands": commands}).encode())
                    case Received(payload=payload):
                        why, end = _refusal(payload), 0.0
                        if not why:
                            log.info("pki: the broker ended the connections of %s", ", ".join(names))
                            for name in nodes:
                                _clear(bus, settings, NodeId(name))
                            return
                    case PublishRefused(reason=reason):
                        why, end = reason, 0.0
                    case Disconnected(error=error):
                        why = str(error)
    finally:
        bus.close()
    raise BusError(
        f"the broker did not end the connections of {', '.join(names)} ({why}): they can do nothing more, "
        "and a restart of the broker ends them; pki.kick needs its plugin, see broker/README.md"
    )


def _clear(bus: MqttBus, settings: Settings, node: NodeId) -> None:
    """Remove every retained message of a revoked node, and say that it is lost, which its last will may not.

    It has no rights any more, so nothing follows. Within `_CLEAR_S`: what a flood left may be much.
    """
    topics, cleared = settings.topics, 0
    status = topics.build(TopicKind.NODE_STATUS, node=node)
    bus.publish(status, NodeStatus(state="lost", why="revoked").encode(), retain=True)
    trees = [f"{topics.root}/{topics.federation}/node/{node}/#"]
    trees += [f"{topics.blob_root}/{topics.federation}/up/{node}/#"]
    for tree in trees:
        bus.subscribe(tree)
    end = time.monotonic() + _CLEAR_S
    quiet = time.monotonic() + _QUIET_S
    while time.monotonic() < min(end, quiet) or (bus.backlog and time.monotonic() < end):
        for event in bus.poll(0.1):
            if isinstance(event, Received) and event.retained and event.topic != status:
                bus.publish(event.topic, b"", retain=True)
                cleared += 1
                quiet = time.monotonic() + _QUIET_S
    for tree in trees:
        bus.unsubscribe(tree)
    if cleared:
        log.info("pki: %d retained messages of %s were cleared", cleared, node)


def _refusal(answer: bytes) -> str:
    """What the plugin could not do; that a name exists already is no matter, since it is deleted next."""
    try:
        responses = json.loads(answer)["responses"]
        return "; ".join(
            str(r["error"])[:100] for r in responses if "error" in r and r["command"] != "createClient"
        )
    except (ValueError, KeyError, TypeError):
        return "an answer that cannot be read"
