"""The TLS context of a party that runs for years: certificates are renewed on disk under its feet."""

import logging
import ssl

from apiary.bus.dial import tls_context
from apiary.errors import SettingsError
from apiary.files import Stamp, stamp
from apiary.settings import BrokerSettings

log = logging.getLogger(__name__)


class Tls:
    """Made at once, and again for each connection attempt before which a file changed."""

    def __init__(self, broker: BrokerSettings):
        """Raises SettingsError naming a file that cannot be used."""
        self._broker = broker
        self._seen = self._stamps()
        self._context = tls_context(broker)

    def context(self) -> ssl.SSLContext | None:
        """For the next attempt, None without TLS; where a new file cannot be used, what worked before."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            try:
                self._context = tls_context(self._broker)
                log.info("broker %s: the TLS files were read again", self._broker.host)
            except SettingsError as e:
                # A certificate and its key change one after the other; the second change is seen too.
                log.warning("%s; what was read before stays in use", e)
        return self._context

    def _stamps(self) -> tuple[Stamp, ...]:
        b = self._broker
        return tuple(stamp(path) for path in (b.tls_ca, b.tls_cert, b.tls_key)) if b.tls else ()
