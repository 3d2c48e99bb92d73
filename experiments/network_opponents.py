"""Nash-MD on a language model with the right opponent, the geometric mixture, and with two wrong ones.

Both are modelled on what was found in trainers in use; the rest of the rule is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import nashpref as npf
from nashpref.experiments.common import Experiment, Table
from nashpref.experiments.network_rules import NEEDS, SIZES, Settings, compare

ETA = 1.0
SHARE = 0.5


@dataclass(frozen=True)
class ReferenceIsPolicy:
    """Nash-MD whose reference has the adapters that are trained: mixture and pull are the policy's own."""

    beta: float
    eta: float

    def steps(self, t: int) -> tuple[npf.MirrorStep, ...]:
        """`π^{1−ηβ} π^{ηβ} = π`: nothing is left but self-play, MWU."""
        return (npf.MirrorStep("current", {"current": 1.0}, {"current": self.eta}),)


@dataclass(frozen=True)
class ImpureMixture:
    """Nash-MD whose opponent is, with probability `share`, the reference in place of the mixture.

    It stands for a decoder that gets the mixture wrong: one cache for two models was found to move about 0.2
    of the probability of every token, and so up to 1 − 0.8³ = 0.49 of that of a response of three.
    """

    beta: float
    eta: float
    share: float

    def steps(self, t: int) -> tuple[npf.MirrorStep, ...]:
        """The mixture as it should be; payoffs are linear in the opponent."""
        (mixture, _) = npf.NashMD(beta=self.beta, eta=self.eta).steps(t)
        payoffs = {"mixture": (1.0 - self.share) * self.eta, "reference": self.share * self.eta}
        return (mixture, npf.MirrorStep("current", {"mixture": 1.0}, payoffs))


def run(settings: Settings) -> Mapping[str, Table]:
    """`gaps`: see `compare`, of the three opponents."""
    beta = settings.beta
    return {
        "gaps": compare(
            settings,
            {
                "geometric mixture": npf.NashMD(beta=beta, eta=ETA),
                "half from the reference": ImpureMixture(beta, ETA, SHARE),
                "the policy for the reference": ReferenceIsPolicy(beta, ETA),
            },
        )
    }


EXPERIMENT = Experiment(
    "Nash-MD on a language model, with the right opponent and with wrong ones",
    SIZES | {"quick": replace(SIZES["quick"], rounds=8)},
    run,
    needs=NEEDS,
)
