"""Every setting, with its default, bound and meaning: one file a section.

`APIARY_RUN__ROUNDS=12` sets `[run] rounds`. Unknown keys are refused with the nearest known one.
"""

from apiary.settings.all import Settings
from apiary.settings.broker import BrokerSettings, password
from apiary.settings.coordinator import CoordinatorSettings, MetricsSettings
from apiary.settings.edge import (
    CameraSettings,
    CaptureSettings,
    EdgeSettings,
    StoreSettings,
    default_node_id,
)
from apiary.settings.guest import GuestSettings
from apiary.settings.loading import Loaded, flatten, load_settings, to_toml
from apiary.settings.operator import OperatorSettings, default_operator
from apiary.settings.pki import PkiSettings
from apiary.settings.predict import PersonalSettings, PredictSettings
from apiary.settings.publish import PublishSettings
from apiary.settings.release import ReleaseSettings, SlotSettings
from apiary.settings.run import Options, RunSettings
from apiary.settings.schedule import ScheduleSettings
from apiary.settings.security import SecuritySettings

__all__ = [
    "BrokerSettings",
    "CameraSettings",
    "CaptureSettings",
    "CoordinatorSettings",
    "EdgeSettings",
    "GuestSettings",
    "Loaded",
    "MetricsSettings",
    "OperatorSettings",
    "Options",
    "PersonalSettings",
    "PkiSettings",
    "PredictSettings",
    "PublishSettings",
    "ReleaseSettings",
    "RunSettings",
    "ScheduleSettings",
    "SecuritySettings",
    "Settings",
    "SlotSettings",
    "StoreSettings",
    "default_node_id",
    "default_operator",
    "flatten",
    "load_settings",
    "password",
    "to_toml",
]
