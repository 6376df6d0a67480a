"""Named chains of stages, one a file; from the settings of a run to its chain."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from pydantic import ValidationError

from apiary import plugins
from apiary.errors import SettingsError
from apiary.learn.node_rules.base import NodeRule
from apiary.options import StageOptions, expected, no_option
from apiary.settings import RunSettings
from apiary.tensors import Tensors64, Weights
from apiary.wire.messages import Plan
from apiary_coordinator.combiners.base import Combined, Combiner, Updates
from apiary_coordinator.server_rules.base import ServerRule, moved
from apiary_coordinator.strategies.base import Strategy

Kind = Literal["node_rule", "combiner", "server_rule"]
KINDS: Final[Mapping[Kind, str]] = {
    "node_rule": "apiary.learn.node_rules",
    "combiner": "apiary_coordinator.combiners",
    "server_rule": "apiary_coordinator.server_rules",
}
"""The setting of `[run]` that names a stage of each kind, and its package."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages of a run, each with its options."""

    names: Mapping[Kind, str]
    options: Mapping[Kind, StageOptions]

    def plan(self, plan: Plan) -> Plan:
        """The plan with what the node rule asks of the nodes."""
        return self._node_rule.plan(plan, self.options["node_rule"])

    @property
    def streams(self) -> bool:
        """Whether updates are added up as they come."""
        return getattr(self._combiner, "STREAMS", False)

    @property
    def least_updates(self) -> int:
        """The fewest updates that a round of it may close with."""
        return self._combiner.least(self.options["combiner"])

    def combine(self, updates: Updates) -> Combined:
        """One update out of all. Raises StoreError."""
        return self._combiner.combine(updates, self.options["combiner"])

    def apply(
        self, state: Weights, weights: Weights, update: Tensors64, *, averaged: Collection[str] = ()
    ) -> tuple[Weights, Weights]:
        """The server rule's state and the model after a round; what no update holds stays as it is.

        The tensors `averaged` have their update added, whatever the rule: momentum or a step of its own size
        would carry a running variance below zero.
        """
        ruled = {name: tensor for name, tensor in update.items() if name not in averaged}
        plain = {name: tensor for name, tensor in update.items() if name in averaged}
        state, by_rule = self._server_rule.apply(
            state, Weights({n: weights[n] for n in weights if n in ruled}), ruled, self.options["server_rule"]
        )
        added = moved(Weights({n: weights[n] for n in weights if n in plain}), plain)
        changed = {**by_rule, **added}
        return state, Weights({name: changed.get(name, tensor) for name, tensor in weights.items()})

    def sent(self, state: Weights, weights: Weights) -> Weights:
        """What the nodes train on; `weights` itself where the server rule sends the model."""
        made: Callable[..., Weights] | None = getattr(self._server_rule, "sent", None)
        return weights if made is None else made(state, weights, self.options["server_rule"])

    @property
    def _node_rule(self) -> NodeRule:
        return cast("NodeRule", plugins.load(KINDS["node_rule"], self.names["node_rule"]))

    @property
    def _combiner(self) -> Combiner:
        return cast("Combiner", plugins.load(KINDS["combiner"], self.names["combiner"]))

    @property
    def _server_rule(self) -> ServerRule:
        return cast("ServerRule", plugins.load(KINDS["server_rule"], self.names["server_rule"]))


def load(run: RunSettings) -> Chain:
    """The chain that a run's settings name. Raises SettingsError naming the setting."""
    strategy: Strategy = _named("strategy", __name__, run.strategy).STRATEGY
    stages: dict[Kind, Any] = {}
    names: dict[Kind, str] = {}
    for kind, package in KINDS.items():
        names[kind] = getattr(run, kind) or getattr(strategy, kind)
        stages[kind] = _named(kind, package, names[kind])
    tables = {kind: stage.Options.model_fields for kind, stage in stages.items()}
    known = [option for table in tables.values() for option in table]
    for option in run.strategy_options:
        if option not in known:
            raise SettingsError(_unknown(option, known, names))
    given = {**strategy.options, **run.strategy_options}
    options = {
        kind: _checked(stage.Options, {o: v for o, v in given.items() if o in tables[kind]})
        for kind, stage in stages.items()
    }
    return Chain(names, options)


def _named(setting: str, package: str, name: str) -> Any:
    try:
        return plugins.load(package, name)
    except SettingsError as e:
        raise SettingsError(f"run.{setting}: {e}") from None


def _unknown(option: str, known: list[str], names: Mapping[Kind, str]) -> str:
    """That no stage of the chain has an option, and which others have."""
    others = [
        f"run.{kind} = {name!r}"
        for kind, package in KINDS.items()
        for name in plugins.names(package)
        if option in plugins.load(package, name).Options.model_fields
    ]
    chain = ", ".join(names.values())
    hint = f"; it belongs to {', '.join(others)}" if others else ""
    return f"run.strategy_options of {chain}: {no_option(option, known)}{hint}"


def _checked(kind: type[StageOptions], given: Mapping[str, Any]) -> StageOptions:
    try:
        return kind.model_validate(dict(given))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = str(first["loc"][0])
        wanted = expected(kind.model_fields[name])
        raise SettingsError(
            f"run.strategy_options.{name} is {first.get('input')!r}, expected {wanted}"
        ) from None
