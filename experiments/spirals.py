"""Last iterates on rock-paper-scissors: MWU spirals out, OGDA and EGPO spiral in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack, table


@dataclass(frozen=True)
class Settings:
    """One step size and one start for all three rules; no regularisation."""

    eta: float = 0.5
    start: tuple[float, float, float] = (0.52, 0.30, 0.18)
    steps: int = 250


def run(settings: Settings) -> Mapping[str, Table]:
    """`iterates`: policy (`rock`, `scissors`, `paper`), gap and KL(π*‖π_t) of every iterate of each rule."""
    game = npf.zoo.rock_paper_scissors()
    star = npf.equilibrium(game).policy
    rules = {
        "MWU": npf.MWU(eta=settings.eta),
        "OGDA": npf.OGDA(eta=settings.eta),
        "EGPO": npf.EGPO(eta=settings.eta),
    }
    parts = []
    for name, rule in rules.items():
        trace = npf.solve(
            game,
            rule,
            settings.steps,
            start=settings.start,
            equilibrium=star,
            record=1,
            keep_policies=True,
        )
        assert trace.policies is not None
        responses = dict(zip(("rock", "scissors", "paper"), trace.policies.T, strict=True))
        parts.append({**table(trace, "gap", "kl", method=name), **responses})
    return {"iterates": stack(parts)}


EXPERIMENT = Experiment(
    "last iterates on rock-paper-scissors: MWU spirals out, OGDA and EGPO spiral in",
    {"quick": Settings(), "default": Settings(), "full": Settings(steps=1000)},
    run,
)
