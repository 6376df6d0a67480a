"""Discovery messages that make predictions show up in Home Assistant as sensors. Pure.

Source: home-assistant.io/integrations/mqtt (discovery messages) and .../sensor.mqtt (their keys). A retained
JSON object on `PREFIX/sensor/NODE/OBJECT/config`; an empty one removes the sensor.
"""

import re
from typing import Any

from apiary import __version__
from apiary.wire import NodeId
from apiary.wire.topics import TopicKind, Topics

Configs = dict[str, dict[str, Any]]
"""Payload of each topic."""


def configs(prefix: str, topics: Topics, node: NodeId) -> Configs:
    """A sensor with the label, its details as attributes, and one with its probability."""
    own = f"apiary_{_plain(topics.federation)}_{_plain(node)}"
    shared = {
        "state_topic": topics.build(TopicKind.NODE_PREDICTION, node=node),
        "availability": [
            {
                "topic": topics.build(TopicKind.NODE_STATUS, node=node),
                "value_template": "{{ 'offline' if value_json.state == 'lost' else 'online' }}",
                "payload_available": "online",
                "payload_not_available": "offline",
            }
        ],
        "device": {
            "identifiers": [own],
            "name": f"Apiary {node}",
            "manufacturer": "Apiary",
            "model": "Edge node",
            "sw_version": __version__,
        },
        "origin": {"name": "Apiary", "sw_version": __version__},
        "qos": 1,
    }
    label = {
        **shared,
        "name": "Prediction",
        "unique_id": f"{own}_prediction",
        "icon": "mdi:eye",
        "value_template": "{{ value_json.label | default('not sure') }}",
        "json_attributes_topic": shared["state_topic"],
        "json_attributes_template": (
            "{{ {'probability': value_json.probability, 'top': value_json.top | default([]), "
            "'model': value_json.model, 'ms': value_json.ms} | tojson }}"
        ),
    }
    probability = {
        **shared,
        "name": "Probability",
        "unique_id": f"{own}_probability",
        "icon": "mdi:percent",
        "unit_of_measurement": "%",
        "state_class": "measurement",
        "suggested_display_precision": 0,
        "value_template": "{{ (100 * value_json.probability) | round(1) }}",
    }
    return {
        topic_of(prefix, topics, node, "prediction"): label,
        topic_of(prefix, topics, node, "probability"): probability,
    }


def topic_of(prefix: str, topics: Topics, node: NodeId, what: str) -> str:
    """Where a sensor is announced; a node may write below its own id only."""
    return f"{prefix}/sensor/{_plain(node)}/{_plain(topics.federation)}_{what}/config"


def _plain(name: str) -> str:
    """Home Assistant takes letters, digits, underscores and hyphens in an id; ours may hold dots."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
