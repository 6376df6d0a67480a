"""The node in Home Assistant: announced while the setting is on, taken out again when it is off."""

import json
import logging
from pathlib import Path

from apiary.files import remove, write_json
from apiary.settings import PredictSettings
from apiary_edge.feature import NodeFeature
from apiary_edge.predicting import home_assistant, model_files
from apiary_edge.transfer.channel import NodeChannel

log = logging.getLogger(__name__)


class HomeAssistant(NodeFeature):
    """Remembers on disk what it announced, so that another start with the setting off can take it back."""

    def __init__(self, channel: NodeChannel, settings: PredictSettings, state_dir: Path):
        self._channel = channel
        wanted = settings.enabled and settings.publish and settings.home_assistant
        prefix = settings.home_assistant_prefix
        self._configs = home_assistant.configs(prefix, channel.topics, channel.node) if wanted else {}
        self._file = model_files.folder(state_dir) / "home_assistant.json"
        self._leaving: list[str] = []

    def connected(self) -> None:
        """Say it again: nothing depends on what a broker keeps."""
        before = self._announced()
        if set(before) != set(self._configs):
            # On disk first: what may have been announced can be taken back.
            write_json(self._file, {"topics": sorted({*before, *self._configs})})
        for topic, payload in self._configs.items():
            self._channel.bus.publish(topic, json.dumps(payload).encode(), qos=1, retain=True)
        self._leaving = [topic for topic in before if topic not in self._configs]
        for topic in self._leaving:
            log.info("node=%s takes %s out of Home Assistant", self._channel.node, topic)
            self._channel.bus.publish(topic, b"", qos=1, retain=True)

    def tick(self, now: float) -> None:
        """What the broker has taken is over."""
        if self._leaving and self._channel.bus.connected and self._channel.bus.backlog == 0:
            self._leaving = []
            if self._configs:
                write_json(self._file, {"topics": sorted(self._configs)})
            else:
                remove(self._file)

    def _announced(self) -> list[str]:
        try:
            topics = json.loads(self._file.read_bytes())["topics"]
            return [topic for topic in topics if isinstance(topic, str) and topic.endswith("/config")]
        except (OSError, ValueError, KeyError, TypeError):
            return []
