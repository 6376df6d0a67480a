"""The job of a background child: what it does between rounds."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from apiary.settings import EdgeSettings


class BackgroundJob(BaseModel):
    """Pictures come from the sample store in `store`, from `edge.data_dir`, or from both, as for a round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edge: EdgeSettings
    store: Path | None
    counted: int = 0
    """Labelled pictures of this node."""
    seed: int = 0

    @property
    def out(self) -> Path:
        """Where it may write what is not kept."""
        return self.edge.state_dir / "chores"

    @property
    def data_dir(self) -> Path | None:
        """Folder of folders by label."""
        return self.edge.data_dir

    @property
    def suggests(self) -> bool:
        """Whether it notes suggestions for the labelling page."""
        return self.edge.predict.suggest and self.store is not None
