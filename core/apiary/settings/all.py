"""All settings of one party."""

from typing import Annotated

from pydantic import Field

from apiary.settings.broker import BrokerSettings
from apiary.settings.coordinator import CoordinatorSettings, MetricsSettings
from apiary.settings.edge import EdgeSettings
from apiary.settings.operator import OperatorSettings
from apiary.settings.pki import PkiSettings
from apiary.settings.publish import PublishSettings
from apiary.settings.release import ReleaseSettings
from apiary.settings.run import RunSettings
from apiary.settings.schedule import ScheduleSettings
from apiary.settings.section import Section, fits_topic
from apiary.settings.security import SecuritySettings
from apiary.wire.topics import Topics

Name = Annotated[str, fits_topic("name")]


class Settings(Section):
    """All settings of one party."""

    federation: Name = Field("default", description="name of the federation; several share a broker")
    root: Name = Field("apiary", description="root of the control topics")
    blob_root: Name = Field("apiary-blob", description="root of the weight topics")
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    run: RunSettings = Field(default_factory=RunSettings)
    coordinator: CoordinatorSettings = Field(default_factory=CoordinatorSettings)
    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    operator: OperatorSettings = Field(default_factory=OperatorSettings)
    publish: PublishSettings = Field(default_factory=PublishSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    pki: PkiSettings = Field(default_factory=PkiSettings)
    release: ReleaseSettings = Field(default_factory=ReleaseSettings)

    @property
    def topics(self) -> Topics:
        """The topics of this federation."""
        return Topics(self.federation, self.root, self.blob_root)
