"""`[edge.guest]`: when a node leaves its machine to others; docs/appliance.md explains each rule."""

from pydantic import Field

from apiary.settings.section import Section


class GuestSettings(Section):
    """When training pauses, and how much of the machine it may take."""

    max_temperature_c: float = Field(80.0, ge=30, le=110, description="training pauses above this")
    cool_by_c: float = Field(5.0, ge=0, le=50, description="and goes on so much below it")
    pause_on_under_voltage: bool = Field(True, description="pause while the power supply is too weak")
    hours: list[str] = Field(
        default_factory=list, description="train only then, e.g. ['22:00-06:00']; empty: always"
    )
    min_memory_mb: int = Field(
        48, ge=0, le=10**6, description="pause where the machine has less memory available"
    )
    max_memory_mb: int | None = Field(
        None, ge=32, le=10**6, description="what training may take; unset: what the machine has"
    )
    min_disk_mb: int = Field(100, ge=0, le=10**6, description="pause where the disk has less left")
    settle_s: float = Field(30.0, ge=0, le=3600, description="go on once all has been well for so long")
    freeze_s: float = Field(
        600.0, ge=0, le=86400, description="a longer pause ends the training child and frees its memory"
    )
    nice: int = Field(10, ge=0, le=19, description="niceness of the training child")
    idle_io: bool = Field(False, description="it reads and writes only when nobody else does (ionice -c 3)")
    max_cores: int | None = Field(None, ge=1, le=1024, description="it runs on at most so many cores")
    check_s: float = Field(5.0, gt=0, le=60, description="look at the machine this often")
    health_s: float = Field(30.0, ge=1, le=3600, description="publish its health at most this often")
