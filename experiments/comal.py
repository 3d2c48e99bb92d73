"""COMAL's 3×3 cycle: COMAL finds the original equilibrium; INPO stalls, SPPO and iterative IPO cycle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack, table


@dataclass(frozen=True)
class Settings:
    """COMAL and INPO share β and η; the fixed reference and the start of all four are `start`.

    SPPO is MWU with `sppo_eta`; iterative IPO, whose reference moves at every step, is MWU with η = 1/β.
    """

    beta: float = 0.1
    eta: float = 0.2
    every: int = 100
    sppo_eta: float = 1.0
    start: tuple[float, float, float] = (0.2, 0.5, 0.3)
    steps: int = 3000


def run(settings: Settings) -> Mapping[str, Table]:
    """`iterates`: gap in the original game, KL(π*‖π_t) and policy (`a`, `b`, `c`) at every 1st step."""
    game = npf.zoo.comal()
    star = npf.equilibrium(game).policy
    beta, eta = settings.beta, settings.eta
    rules: dict[str, npf.UpdateRule] = {
        "COMAL": npf.COMAL(beta=beta, eta=eta, every=settings.every),
        "INPO": npf.GDA(beta=beta, eta=eta),
        "SPPO": npf.MWU(eta=settings.sppo_eta),
        "iterative IPO": npf.MWU(eta=1.0 / beta),
    }
    parts = []
    for name, rule in rules.items():
        trace = npf.solve(
            game,
            rule,
            settings.steps,
            reference=settings.start,
            equilibrium=star,
            record=1,
            keep_policies=True,
        )
        assert trace.policies is not None
        responses = dict(zip(("a", "b", "c"), trace.policies.T, strict=True))
        parts.append({**table(trace, "unregularised_gap", "kl", method=name), **responses})
    return {"iterates": stack(parts)}


EXPERIMENT = Experiment(
    "COMAL's 3×3 cycle: it converges where INPO stalls, and SPPO and iterative IPO cycle",
    {"quick": Settings(), "default": Settings(), "full": Settings(steps=10_000)},
    run,
)
