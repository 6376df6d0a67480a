"""Every setting, with its default, bound and meaning: one file a section.

`APIARY_RUN__ROUNDS=12` sets `[run] rounds`. Unknown keys are refused with the nearest known one.
"""

from apiary.settings.all import Settings as Settings
from apiary.settings.broker import BrokerSettings as BrokerSettings
from apiary.settings.broker import password as password
from apiary.settings.coordinator import MetricsSettings as MetricsSettings
from apiary.settings.edge import CameraSettings as CameraSettings
from apiary.settings.edge import CaptureSettings as CaptureSettings
from apiary.settings.edge import EdgeSettings as EdgeSettings
from apiary.settings.edge import StoreSettings as StoreSettings
from apiary.settings.guest import GuestSettings as GuestSettings
from apiary.settings.loading import Loaded as Loaded
from apiary.settings.loading import flatten as flatten
from apiary.settings.loading import load_settings as load_settings
from apiary.settings.loading import to_toml as to_toml
from apiary.settings.predict import PersonalSettings as PersonalSettings
from apiary.settings.predict import PredictSettings as PredictSettings
from apiary.settings.publish import PublishSettings as PublishSettings
from apiary.settings.release import ReleaseSettings as ReleaseSettings
from apiary.settings.release import SlotSettings as SlotSettings
from apiary.settings.run import RunSettings as RunSettings
from apiary.settings.schedule import ScheduleSettings as ScheduleSettings
from apiary.settings.security import SecuritySettings as SecuritySettings
