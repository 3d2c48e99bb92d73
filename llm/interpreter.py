"""The third interpreter of mirror steps: named policies are networks, and a step is fitted from samples.

The step `log π ← Σ_k w_k log π_k + Σ_j g_j q_j − log Z` becomes a regression: on K responses to one prompt,

    e_i = log π(y_i) − Σ_k w_k log π_k(y_i) − Σ_j g_j q̂_j(y_i),      loss = K⁻¹ Σ_i (e_i − ē)²,

whose minimum, over all policies and in expectation, is the step itself. A step without payoffs is no training
at all: a copy, or a mixture to be sampled from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nashpref.llm.losses.selfplay import variance
from nashpref.llm.policies import Blend, Policy, Store, Weights, mixed
from nashpref.mirror import MirrorStep, UpdateRule

Estimator = Literal["regression", "on_policy", "policy_gradient"]
OWN, OPPONENTS = 0, 1  # streams of random numbers


@dataclass(frozen=True, eq=False)
class Draws:
    """K responses to each of B prompts, or of R dialogues that B prompts have led to.

    Attributes:
        prompts: what they answer, R in number.
        responses: whatever the space knows them by.
        weights: `(R, K)`, of sum 1 in each row: a mean over the policy that is meant is this weighted mean.
        logps: `(R, K)` where drawing has told `log π(y)` of the policy drawn from.
        owners: `(R,)`, which of the B prompts led to each row, and `shares`, `(R,)`, what the row's loss
            counts in that prompt's; None: R = B, each prompt is a row.
    """

    prompts: Sequence[Any]
    responses: Any
    weights: Tensor
    logps: Tensor | None = None
    owners: Tensor | None = None
    shares: Tensor | None = None

    def by_prompt(self, values: Tensor, B: int) -> Tensor:
        """`Σ share · value` over each prompt's rows, `(B,)`, from values of rows, `(R,)`."""
        if self.owners is None or self.shares is None:
            return values
        return values.new_zeros(B).index_add(0, self.owners, self.shares.to(values) * values)


class Fitted(NamedTuple):
    """What a mirror step is fitted on.

    Attributes:
        draws: responses.
        target: `(B, K)`, `Σ_k w_k log π_k(y_i) + Σ_j g_j q̂_j(y_i)`.
        start: `(B, K)`, log π(y_i) of the policy that fitting begins with.
    """

    draws: Draws
    target: Tensor
    start: Tensor


class Space(Protocol):
    """Where policies live: how they draw, what they say of responses, and which of two responses wins."""

    @property
    def store(self) -> Store:
        """Of the network that is trained."""
        ...

    def draw(
        self,
        policy: Policy | None,
        prompts: Sequence[Any],
        step: int,
        stream: int,
        *,
        systematic: bool = False,
    ) -> Draws:
        """Responses of a policy, or of the network as it is now; `step` and `stream` are the randomness.

        Independent ones; or, if `systematic`, each from the policy but all spread over it, so that their
        mean varies less.
        """
        ...

    def logps(self, policy: Weights | None, draws: Draws) -> Tensor:
        """`log π(y)`, `(B, K)`; with gradients, of the network as it is now, for None."""
        ...

    def gain(
        self,
        step: MirrorStep,
        draws: Draws,
        policy: Callable[[str], Policy],
        at: int,
        *,
        systematic: bool = False,
        drawn: Mapping[str, Draws] | None = None,
    ) -> Tensor:
        """`Σ_j g_j q̂_j(y_i)`, `(R, K)`, up to a constant in each row: what opponents make of responses.

        Args:
            step: whose payoffs g_j are of the opponents j.
            draws: the responses.
            policy: named policies.
            at: the randomness of what is drawn here, which is the same for all opponents.
            systematic: as of `draw`.
            drawn: responses of opponents that have been drawn already.
        """
        ...

    def some(self, draws: Draws, columns: Tensor) -> Draws:
        """Of each prompt's responses those in `columns`, `(B, k)`."""
        ...


def payoffs(
    win_rates: Callable[[Draws, Draws], Tensor],
    draw: Callable[[Policy], Draws],
    step: MirrorStep,
    draws: Draws,
    policy: Callable[[str], Policy],
    drawn: Mapping[str, Draws] | None,
) -> Tensor:
    """`Space.gain` of one turn: `q̂_j(y_i)` is the mean of `Pr(y_i ≻ y'_k | x) − 1/2` over draws of π_j.

    Args:
        win_rates: of draws, `(B, K)`, over an opponent's, `(B, K')`: `(B, K, K')`.
        draw: responses of an opponent; equal ones are drawn once.
        step, draws, policy, drawn: as of `Space.gain`.
    """
    q: dict[Policy, Tensor] = {}
    for name in step.payoffs:
        opponent = policy(name)
        if opponent not in q:
            other = (drawn or {}).get(name) or draw(opponent)
            rates = win_rates(draws, other)
            q[opponent] = torch.einsum("bik,bk->bi", rates, other.weights.to(rates)) - 0.5
    total = torch.stack([float(g) * q[policy(name)] for name, g in step.payoffs.items()]).sum(dim=0)
    return total.to(draws.weights)


class MirrorObjective(nn.Module):
    """What `fit` minimises so that a network runs an update rule.

    Each mirror step with payoffs is fitted with `updates` optimizer steps; in between, networks are kept
    under the names that the rule gives them. Responses are drawn, scored and compared anew every `reuse`
    steps; the steps that share them take `batch_responses` of each prompt's at a time. What is shared is a
    function of the policies at the start of the fit and of the step, so that a run that was cut off makes it
    again.

    Estimators of a step:

    * "regression": responses of `sampler`, payoffs against responses of the opponents drawn beside them.
      Right for every rule; any sampler that leaves nothing out will do. Neither need be independent among
      themselves, and so they are drawn systematically, and all opponents with the same numbers: differences
      of payoffs, such as optimistic rules take, vary less.
    * "on_policy": responses are the opponent's own, which play against each other. The K×K matrix with its
      diagonal of 1/2 makes the regression unbiased; K = 2 is INPO's binary form. Half the responses, and only
      for steps with one opponent.
    * "policy_gradient": `∇ Σ_j g_j E[q_j(y)] − Σ_k w_k KL(π‖π_k)` at the network as it is now, of whole
      responses, from its own responses with their mean left out as baseline. One optimizer step is no mirror
      step; what stays is the fixed point. Nash-MD-PG is this with `nashpref.NashMD`.

    Args:
        space: see `Space`.
        rule: any rule of `nashpref`.
        rounds: after so many the rule is asked for no further step; None: there is always a next one.
        updates: optimizer steps for each mirror step with payoffs.
        reuse: optimizer steps on the same responses, which `batches` must give the same prompts; a divisor of
            `updates`, and 1 for "policy_gradient".
        batch_responses: how many responses of each prompt an optimizer step takes; None: all.
        estimator: see above.
        sampler: the policy whose responses "regression" is fitted on.
        systematic: False draws all responses independently.

    Raises:
        ValueError: a rule whose steps the estimator is not right for, with the reason.
    """

    def __init__(
        self,
        space: Space,
        rule: UpdateRule,
        *,
        rounds: int | None = None,
        updates: int = 1,
        reuse: int = 1,
        batch_responses: int | None = None,
        estimator: Estimator = "regression",
        sampler: str = "current",
        systematic: bool = True,
    ) -> None:
        super().__init__()
        if updates < 1:
            raise ValueError(f"updates = {updates}: at least one optimizer step is needed for a mirror step")
        if reuse < 1 or updates % reuse:
            raise ValueError(f"reuse = {reuse}: a divisor of updates = {updates} is needed")
        if batch_responses is not None and batch_responses < 2:
            raise ValueError(f"batch_responses = {batch_responses}: responses are compared, 2 is the least")
        if estimator == "policy_gradient" and (reuse, batch_responses) != (1, None):
            raise ValueError(
                "estimator = 'policy_gradient' needs responses of the network as it is: reuse = 1"
            )
        self.space, self.rule, self.rounds, self.updates = space, rule, rounds, updates
        self.estimator, self.sampler, self.systematic = estimator, sampler, systematic
        self.reuse, self.batch_responses = reuse, batch_responses
        self._fitted: dict[tuple[Any, ...], Fitted] = {}  # of the prompts in use, made at step _fitted_at
        self._fitted_at = -1
        self.network = space.store.model  # a submodule, so that its parameters are found
        base = space.store.base
        self.start = base if base.tensors is not None else space.store.take()  # new adapters may differ
        self.policies: dict[str, Policy] = {"reference": base, "current": self.start}
        self.round = self.place = self.count = self.taken = 0
        self.report: dict[str, float] = {}
        self._next_fit()

    @property
    def step(self) -> MirrorStep:
        """The mirror step that is being fitted."""
        return self.rule.steps(self.round)[self.place]

    def policy(self, name: str) -> Policy:
        """By its name; one not yet written is where training started."""
        return self.policies.get(name, self.start)

    def forward(self, prompts: Sequence[Any]) -> dict[str, Tensor]:
        """`loss` for each prompt; `displacement`, what the loss would be had the step not been begun."""
        if self.estimator == "policy_gradient":
            return self._policy_gradient(prompts)
        drawn_at = self.taken - self.count % self.reuse
        if drawn_at != self._fitted_at:
            self._fitted, self._fitted_at = {}, drawn_at
        key = tuple(prompts)
        if key not in self._fitted:
            with torch.no_grad():
                self._fitted[key] = self._draw(prompts, drawn_at)
        draws, target, start = self._some(self._fitted[key])
        logps = self.space.logps(None, draws)
        found = {"loss": variance(logps - target), "displacement": variance(start - target)}
        return {name: draws.by_prompt(values, len(prompts)) for name, values in found.items()}

    def advance(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """After each `updates` optimizer steps the policy is written, and the next fit begun.

        Returns the number of rounds that are over and, of the latest fit, `residual`: what it has left of
        the distance that the policy had to go, as a ratio of losses on its last batch.
        """
        self.taken += 1
        self.count += 1
        if self.count < self.updates:
            return self.report
        if metrics.get("displacement", 0.0) > 0.0:
            self.report["residual"] = metrics["loss"] / metrics["displacement"]
        self.policies[self.step.to] = self.space.store.take()
        self.count, self.place = 0, self.place + 1
        self._next_fit()
        self.report["round"] = float(self.round)
        return self.report

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that is not in the network, as tensors and JSON."""
        unique: dict[Weights, int] = {self.start: 0}

        def describe(policy: Policy) -> Any:
            parts = policy.parts if isinstance(policy, Blend) else ((policy, 1.0),)
            return [[unique.setdefault(part, len(unique)), weight] for part, weight in parts]

        names = {name: describe(policy) for name, policy in self.policies.items()}
        tensors = {
            f"{index}.{i}": tensor
            for weights, index in unique.items()
            for i, tensor in enumerate(weights.tensors or ())
        }
        counters = {"round": self.round, "place": self.place, "count": self.count, "taken": self.taken}
        return tensors, {
            "counters": counters,
            "report": self.report,
            "policies": names,
            "kept": len(unique),
        }

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from there."""
        device = next(self.network.parameters()).device
        unique = []
        for index in range(state["kept"]):
            found = [key for key in tensors if key.startswith(f"{index}.")]
            loaded = tuple(tensors[f"{index}.{i}"] for i in range(len(found)))
            if not self.space.store.offload:
                loaded = tuple(tensor.to(device) for tensor in loaded)
            unique.append(Weights(loaded or None))
        self.start, self.report = unique[0], dict(state["report"])
        self.policies = {
            name: unique[parts[0][0]]
            if len(parts) == 1
            else Blend(tuple((unique[index], weight) for index, weight in parts))
            for name, parts in state["policies"].items()
        }
        self.round, self.place, self.count, self.taken = (
            state["counters"][name] for name in ("round", "place", "count", "taken")
        )

    def _next_fit(self) -> None:
        """Do all that needs no training up to the next step that does, whose start becomes the network."""
        while self.round != self.rounds:
            steps = self.rule.steps(self.round)
            while self.place < len(steps) and not steps[self.place].payoffs:
                step = steps[self.place]
                self.policies[step.to] = mixed(step, {name: self.policy(name) for name in step.anchors})
                self.place += 1
            if self.place < len(steps):
                self._check()
                self.space.store.load(self._start_of(self.step))
                return
            self.round, self.place = self.round + 1, 0

    def _check(self) -> None:
        step = self.step
        if self.estimator == "on_policy" and len(step.payoffs) != 1:
            raise ValueError(
                f"estimator = 'on_policy': {type(self.rule).__name__} plays {len(step.payoffs)} opponents in "
                f"one step ({', '.join(step.payoffs)}), and responses can be drawn from one of them only: "
                "use 'regression'"
            )

    def _start_of(self, step: MirrorStep) -> Weights:
        """Where fitting begins: at the anchor that weighs most, unless it is a base without adapters."""
        flat: dict[Weights, float] = {}
        for name, weight in step.anchors.items():
            policy = self.policy(name)
            for part, share in policy.parts if isinstance(policy, Blend) else ((policy, 1.0),):
                flat[part] = flat.get(part, 0.0) + share * float(weight)
        trained = [part for part in flat if part.tensors is not None] or [self.start]
        return max(trained, key=lambda part: (flat.get(part, 0.0), part is self.policies["current"]))

    def _draw(self, prompts: Sequence[Any], at: int) -> Fitted:
        """Responses, and what a policy that is the mirror step says of them, up to its −log Z."""
        step, space = self.step, self.space
        on_policy = self.estimator == "on_policy"
        sampler = next(iter(step.payoffs)) if on_policy else self.sampler
        draws = space.draw(
            self.policy(sampler), prompts, at, OWN, systematic=self.systematic and not on_policy
        )
        score = self._scores(draws, self.policy(sampler))
        target = space.gain(
            step,
            draws,
            self.policy,
            at,
            systematic=self.systematic,
            drawn={sampler: draws} if on_policy else None,
        )
        for name, weight in step.anchors.items():
            target = target + float(weight) * score(self.policy(name))
        return Fitted(draws, target, score(self._start_of(step)))

    def _some(self, fitted: Fitted) -> Fitted:
        """As many responses of each prompt as an optimizer step takes."""
        B, K = fitted.target.shape
        if self.batch_responses is None or self.batch_responses >= K:
            return fitted
        # A permutation of the responses for each pass over them, so that all are taken equally often.
        per_pass = K // self.batch_responses
        turn, part = divmod(self.count % self.reuse, per_pass)
        generator = torch.Generator().manual_seed(1_000_003 * self._fitted_at + turn)
        order = torch.rand((1, K), generator=generator).argsort(dim=1).expand(B, K)
        columns = order[:, part * self.batch_responses : (part + 1) * self.batch_responses]
        columns = columns.to(fitted.target.device)
        chosen = self.space.some(fitted.draws, columns)
        return Fitted(chosen, fitted.target.gather(1, columns), fitted.start.gather(1, columns))

    def _scores(self, draws: Draws, drawn_from: Policy | None) -> Any:
        """`policy → log π(y)`, `(B, K)`, each network asked once; of a mixture up to a constant."""
        kept: dict[Policy, Tensor] = {}
        if draws.logps is not None and isinstance(drawn_from, Weights):
            kept[drawn_from] = draws.logps

        def score(policy: Policy) -> Tensor:
            if isinstance(policy, Blend):
                return torch.stack([weight * score(part) for part, weight in policy.parts]).sum(dim=0)
            if policy not in kept:
                kept[policy] = self.space.logps(policy, draws)
            return kept[policy]

        return score

    def _policy_gradient(self, prompts: Sequence[Any]) -> dict[str, Tensor]:
        """The score-function gradient, whole responses, baseline the mean of the others."""
        step, space = self.step, self.space
        draws = space.draw(None, prompts, self.taken, OWN)
        logps = space.logps(None, draws)
        with torch.no_grad():
            # Where fitting begins the network is a policy that has a name, and need not be asked again.
            now = self._start_of(step) if self.count == 0 else None
            known = self._scores(replace(draws, logps=logps.detach()), now)
            gain = space.gain(step, draws, self.policy, self.taken, systematic=self.systematic)
            for name, weight in step.anchors.items():
                gain = gain - float(weight) * (logps - known(self.policy(name)))
            K = gain.shape[1]
            if K < 2:
                raise ValueError("samples = 1: the policy gradient's baseline needs at least 2")
            advantage = (gain - gain.mean(dim=1, keepdim=True)) * (K / (K - 1))
        return {"loss": -(advantage * logps).mean(dim=1), "gain": gain.mean(dim=1)}
