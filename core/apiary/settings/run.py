"""`[run]`: what a run trains, on whom, and when it ends."""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from apiary.settings.section import Section
from apiary.tags import MAX_RULES, parse_rule
from apiary.wire.messages import Bounds, Plan
from apiary.wire.messages.plan import LATER as _LATER_IN_PLANS

LATEST: Final = "latest"
SCRATCH: Final = "scratch"
_LATER: Final = frozenset(
    {
        "node_rule",
        "combiner",
        "server_rule",
        "start_from",
        "train",
        "max_weight_ratio",
        "clip",
        "leave_out_gain",
        "by_round",
    }
)
"""Settings that version 0.1 does not know, and refuses to read."""
Options = dict[str, bool | int | float | str | list[int]]


class _StrictPlan(Plan):
    model_config = ConfigDict(extra="forbid")


class _StrictBounds(Bounds):
    model_config = ConfigDict(extra="forbid")


def _strictly(model: type[BaseModel]) -> BeforeValidator:
    """Refuse unknown keys where a table is given: messages ignore them, a settings file must not."""

    def check(value: Any) -> Any:
        if isinstance(value, dict):
            model.model_validate(value)
        return value

    return BeforeValidator(check)


class PlanByRound(Section):
    """How the plan changes from round to round; rounds count as they close, from 1."""

    learning_rate: Literal["constant", "step", "linear", "cosine"] = Field(
        "constant", description="how it falls over the run's rounds"
    )
    last_share: float = Field(
        0.01, gt=0, le=1, description="linear, cosine: what is left of it in the last round"
    )
    step_rounds: int = Field(5, ge=1, le=100_000, description="step: after so many rounds it is multiplied")
    step_factor: float = Field(0.5, gt=0, le=1, description="step: by this")
    warmup_rounds: int = Field(
        0, ge=0, le=100_000, description="rounds in which it rises to run.plan.learning_rate"
    )
    epochs: dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=1000)]] = Field(
        default_factory=dict,
        max_length=100,
        description="epochs from a round on, e.g. {1 = 4, 6 = 2}; before the first: run.plan.epochs",
    )


class RunSettings(Section):
    """What a run trains, on how many nodes, and when it ends."""

    recipe: str = Field("edge_cnn", description="model recipe")
    recipe_options: Options = Field(
        default_factory=dict, description="options of the recipe, e.g. size, alpha"
    )
    strategy: str = Field("fedavg", description="how updates become the next model: a chain of stages")
    strategy_options: Options = Field(default_factory=dict, description="options of the chain's stages")
    node_rule: str | None = Field(
        None, description="what nodes minimise: plain or proximal; unset: the strategy's"
    )
    combiner: str | None = Field(
        None, description="how updates become one, e.g. mean, median; unset: the strategy's"
    )
    server_rule: str | None = Field(
        None, description="how that becomes the next model, e.g. fedavg, fedacg; unset: the strategy's"
    )
    start_from: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="first model: latest, a run, a .keras file, scratch; unset: scratch, if scheduled latest",
    )
    train: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default_factory=list,
        max_length=100,
        description="layers or tensors that are trained and sent, e.g. ['classes']; empty: all",
    )
    rounds: int = Field(10, ge=1, le=100_000, description="at most this many rounds")
    target_accuracy: float | None = Field(None, gt=0, le=1, description="stop once the model is this good")
    patience: int | None = Field(None, ge=1, description="stop after this many rounds without improvement")
    min_delta: float = Field(0.0, ge=0, le=1, description="what counts as an improvement of accuracy")
    min_nodes: int = Field(2, ge=1, le=100_000, description="wait for this many nodes before the first round")
    fraction: float = Field(1.0, gt=0, le=1, description="share of the ready nodes drawn each round")
    cohort_size: int | None = Field(None, ge=1, le=20_000, description="draw at most this many nodes")
    only: list[str] = Field(
        default_factory=list,
        max_length=MAX_RULES,
        description="draw nodes with these tags alone, e.g. ['site=north'], or ['node=pi-1', 'node=pi-2']",
    )
    per_tag: str | None = Field(
        None, description="draw evenly over the values of this tag, e.g. site; nodes without it are one group"
    )
    over_select: float = Field(1.0, ge=1, le=4, description="draw this many times the goal, take the first")
    quorum: float = Field(0.5, gt=0, le=1, description="share of the goal that a round needs at its deadline")
    deadline_s: float | None = Field(
        None, gt=0, le=10**6, description="length of a round; unset: follows the fleet's pace"
    )
    first_deadline_s: float = Field(
        14400, gt=0, le=10**6, description="length of a round before the pace is known"
    )
    max_weight_ratio: float = Field(
        3.0,
        ge=1,
        le=1e6,
        description="most that an update weighs, in medians of the cohort",
    )
    leave_out_gain: float = Field(
        0.25,
        ge=0,
        le=1,
        description="leave out an update that raises the held-out loss by this share",
    )
    clip: float = Field(3.0, ge=1, le=1e6, description="largest norm of an update, in last round's medians")
    lost_grace_s: float = Field(
        60.0, ge=0, le=86400, description="a vanished node may come back within this time"
    )
    settle_s: float = Field(
        2.0, ge=0, le=3600, description="pause after the last newcomer before the first round"
    )
    max_failed_rounds: int = Field(
        3, ge=1, le=10_000, description="give up after this many failed rounds in a row"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random: cohorts, weights, training")
    plan: Annotated[Plan, _strictly(_StrictPlan)] = Field(
        default_factory=Plan, description="How each node trains."
    )
    by_round: PlanByRound = Field(
        default_factory=PlanByRound, description="How the plan changes from round to round."
    )
    bounds: Annotated[Bounds, _strictly(_StrictBounds)] = Field(
        default_factory=Bounds, description="What an update may hold."
    )

    @field_validator("only")
    @classmethod
    def _are_rules(cls, value: list[str]) -> list[str]:
        for rule in value:
            parse_rule(rule)
        return value

    def journaled(self) -> str:
        """JSON for the journal: all settings, but those of `_LATER` that are at their defaults.

        So a coordinator of version 0.1 goes on with a run that uses nothing of them. Their defaults are
        what a journaled run began with: they stay as they are.
        """
        found = self.model_dump(mode="json")
        usual = RunSettings().model_dump(mode="json", include={*_LATER, "plan"})
        kept = {k: v for k, v in found.items() if k not in _LATER or v != usual[k]}
        kept["plan"] = {
            k: v for k, v in found["plan"].items() if k not in _LATER_IN_PLANS or v != usual["plan"][k]
        }
        return json.dumps(kept)
