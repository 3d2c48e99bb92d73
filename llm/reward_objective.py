"""What `fit` minimises so that a network maximises a reward on responses of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nashpref.llm.algorithms import PPO, Algorithm, Experience
from nashpref.llm.completions import Asked, CompletionSpace
from nashpref.llm.data import Text
from nashpref.llm.encoding import Tokens
from nashpref.llm.logprobs import (
    CHUNK,
    causal_model,
    check_completions,
    hidden_states,
    quietly,
    score_targets,
    token_logps,
)
from nashpref.llm.losses.policy_gradient import AdaptiveKL
from nashpref.llm.policies import Store, Weights
from nashpref.llm.preferences.adapters import Reward, checked
from nashpref.llm.preferences.adapters import sample as sample_at
from nashpref.llm.sampling import sample

DECAY = 0.9  # of the average over earlier batches


class Drawn(NamedTuple):
    """Responses, N = B·K, with all that does not change while they are used.

    Attributes:
        tokens: of prompts and responses, `(N, T)`.
        rewards: `(B, K)`.
        reference: log μ of the responses' tokens, `(N, T)`.
        greedy: rewards of the likeliest responses, `(B,)`, where asked for.
        old, values: of the policy that drew, `(N, T)`; None where it is the network as it is now.
    """

    tokens: Tokens
    rewards: Tensor
    reference: Tensor
    greedy: Tensor | None
    old: Tensor | None = None
    values: Tensor | None = None


class RewardObjective(nn.Module):
    """What `fit` minimises so that a network maximises a reward.

    Responses are drawn anew, from the network as it is then, every `reuse` steps: PPO's epochs. They are a
    function of its weights, of the step and of the prompt alone, and those weights are kept while they are
    used, so that a run that was cut off draws them again.

    Args:
        space: where responses are drawn; its preference is not asked.
        algorithm: one of `nashpref.llm.algorithms`.
        reward: `(prompts, responses) -> numbers`, finite ones.
        reuse: optimizer steps on the same responses, for which `batches` must give the same prompts.

    Raises:
        ValueError: `reuse` below 1; an algorithm that asks for the likeliest response of a sampler of the
            user's own. In training: a reward that raises, is not finite, or is not one for each response; its
            step and its sample are named. Checkpoints stay as they are: with the reward mended, training goes
            on from the newest.
    """

    def __init__(
        self, space: CompletionSpace, algorithm: Algorithm, reward: Reward, *, reuse: int = 1
    ) -> None:
        super().__init__()
        if reuse < 1:
            raise ValueError(f"reuse = {reuse}: at least one optimizer step is needed for each drawing")
        if algorithm.asks_greedy and space.generate is not None:
            raise ValueError(
                f"{type(algorithm).__name__} asks for the policy's likeliest response, which a sampler of "
                "your own does not give: leave generate out, or choose RLOO"
            )
        self.space, self.algorithm, self.reward, self.reuse = space, algorithm, reward, reuse
        self.network = space.store.model  # a submodule, so that its parameters are found
        self.value: nn.Linear | None = None
        if isinstance(algorithm, PPO):
            causal = causal_model(self.network)
            width = causal.get_output_embeddings().weight.shape[1]
            self.value = nn.Linear(width, 1, device=causal.device)
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)
        self.reference = space.store.base
        self.store = Store(self, offload=space.store.offload)  # the value is the policy's that drew, too
        self.behaviour = self._kept_weights()
        beta = algorithm.beta
        self.beta = beta.start if isinstance(beta, AdaptiveKL) else beta
        self.taken = 0
        self._sum, self._count = 0.0, 0.0  # of rewards in earlier batches, decayed
        self._drawn: dict[tuple[int, ...], Drawn] = {}  # of the prompts in use, made at step _drawn_at
        self._drawn_at = -1

    def forward(self, prompts: Sequence[Asked]) -> dict[str, Tensor]:
        """`loss` for each prompt; of the policy that drew: `reward`, `kl` (k1), both together, `tokens`."""
        drawn = self._responses(prompts)
        logps, values = self._read(drawn.tokens)
        experience = Experience(
            rewards=drawn.rewards,
            old=logps.detach() if drawn.old is None else drawn.old,
            reference=drawn.reference,
            mask=drawn.tokens.completion_mask,
            beta=self.beta,
            longest=self.space.max_new_tokens,
            average=self._sum / self._count if self._count else None,
            greedy=drawn.greedy,
            values=values.detach() if drawn.values is None and values is not None else drawn.values,
        )
        shape = experience.rewards.shape
        loss = self.algorithm.loss(logps, experience)
        reward, kl = experience.rewards.mean(dim=1), experience.kl.mean(dim=1)
        found = {
            "reward": reward,
            "kl": kl,
            "regularised_reward": reward - self.beta * kl,
            "tokens": experience.mask.sum(dim=1).view(shape).float().mean(dim=1),
        }
        if isinstance(self.algorithm, PPO):
            assert values is not None
            value_loss = self.algorithm.value_loss(values, experience)
            loss = loss + value_loss
            found["value_loss"] = value_loss.detach().view(shape).mean(dim=1)
        return {"loss": loss.view(shape).mean(dim=1), **found}

    def advance(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """After `reuse` optimizer steps the policy that draws is the network again.

        Returns the number of rounds that are over, and `beta` of the next.
        """
        self.taken += 1
        if self.taken % self.reuse == 0:
            name = "regularised_reward" if self.algorithm.kl == "reward" else "reward"
            self._sum = DECAY * self._sum + (1.0 - DECAY) * metrics[name]
            self._count = DECAY * self._count + (1.0 - DECAY)
            if isinstance(self.algorithm.beta, AdaptiveKL):
                self.beta = self.algorithm.beta(self.beta, metrics["kl"])
            self.behaviour = self._kept_weights()
        return {"round": float(self.taken // self.reuse), "beta": self.beta}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that is not in the network or the value, as tensors and JSON."""
        kept = {"reference": self.reference, "behaviour": self.behaviour}
        tensors = {
            f"{name}.{i}": tensor
            for name, weights in kept.items()
            for i, tensor in enumerate((weights and weights.tensors) or ())
        }
        return tensors, {"taken": self.taken, "beta": self.beta, "average": [self._sum, self._count]}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from there."""

        def weights(name: str) -> Weights | None:
            found = [key for key in tensors if key.startswith(f"{name}.")]
            loaded = tuple(tensors[f"{name}.{i}"] for i in range(len(found)))
            if not self.store.offload:
                loaded = tuple(tensor.to(self.store.trained[0].device) for tensor in loaded)
            return Weights(loaded) if loaded else None

        self.reference, self.behaviour = weights("reference") or Weights(None), weights("behaviour")
        self.taken, self.beta = state["taken"], state["beta"]
        self._sum, self._count = state["average"]

    def _kept_weights(self) -> Weights | None:
        """Of the policy that draws; none while that is the network itself."""
        return self.store.take() if self.reuse > 1 else None

    def _responses(self, prompts: Sequence[Asked]) -> Drawn:
        at = self.taken - self.taken % self.reuse
        if at != self._drawn_at:
            self._drawn, self._drawn_at = {}, at
        key = tuple(asked.index for asked in prompts)
        if key not in self._drawn:
            self._drawn[key] = self._draw(prompts, at)
        return self._drawn[key]

    @torch.no_grad()
    def _draw(self, prompts: Sequence[Asked], at: int) -> Drawn:
        space, likeliest, old, values = self.space, None, None, None
        with nullcontext() if self.behaviour is None else self.store.loaded(self.behaviour):
            draws = space.draw(None, prompts, at, 0)
            tokens, texts = draws.responses.tokens, draws.responses.texts
            if self.algorithm.asks_greedy:
                likeliest = self._likeliest(prompts)
            if self.behaviour is not None:
                with quietly(self.network):
                    old, values = self._read(tokens)
        with quietly(self.network), space.store.loaded(self.reference):
            reference = token_logps(self.network, tokens, temperature=space.temperature)
        rewards = self._rewards(prompts, texts).to(reference)
        if likeliest is None:
            return Drawn(tokens, rewards, reference, None, old, values)
        greedy = self._rewards(prompts, likeliest)[:, 0].to(reference)
        return Drawn(tokens, rewards, reference, greedy, old, values)

    def _rewards(self, prompts: Sequence[Asked], texts: Sequence[Sequence[str]]) -> Tensor:
        """`rewards_of`; errors name the step."""
        try:
            return rewards_of(self.reward, prompts, texts)
        except ValueError as error:
            raise ValueError(f"step {self.taken + 1}: {error}") from error

    def _likeliest(self, prompts: Sequence[Asked]) -> list[list[str]]:
        """The greedy response to each prompt."""
        space = self.space
        return sample(
            self.network,
            space.encoder,
            [asked.prompt for asked in prompts],
            1,
            max_new_tokens=space.max_new_tokens,
            top_k=1,
            uniforms=torch.zeros(len(prompts), space.max_new_tokens),
        ).texts

    def _read(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """log π of each token, and V of what comes before it, `(N, T)`; from one pass."""
        temperature = self.space.temperature
        if self.value is None:
            return token_logps(self.network, tokens, temperature=temperature), None
        check_completions(tokens)
        causal, predicted = causal_model(self.network), tokens.completion_mask.bool()
        positions = predicted.flatten().nonzero().squeeze(1)
        states = hidden_states(causal, tokens).flatten(0, 1).index_select(0, positions - 1)
        targets = tokens.input_ids.flatten().index_select(0, positions)
        scores = score_targets(causal, states, targets, temperature, CHUNK)
        values = self.value(states.to(self.value.weight.dtype)).squeeze(1).float()
        empty = scores.new_zeros(predicted.shape)
        return empty.masked_scatter(predicted, scores), empty.masked_scatter(predicted, values.to(scores))


def rewards_of(reward: Reward, prompts: Sequence[Asked], texts: Sequence[Sequence[Text]]) -> Tensor:
    """r(x, y) of K responses to each of B prompts, `(B, K)` float64.

    Raises:
        ValueError: a reward that raises, is not finite, or is not one for each response; the sample at fault
            is named.
    """
    asked = [each.prompt for each, responses in zip(prompts, texts, strict=True) for _ in responses]
    flat = [response for responses in texts for response in responses]
    try:
        values = reward(asked, flat)
    except Exception as error:
        at = _first_that_raises(reward, asked, flat)
        where = "all samples together, and for none alone" if at is None else sample_at(at, asked[at])
        said = "" if at is None else f", answered {flat[at]!r:.60}"
        raise ValueError(f"the reward raised {type(error).__name__}: {error}; for {where}{said}") from error
    return checked(values, asked, "the reward", -math.inf, math.inf).view(len(prompts), -1)


def _first_that_raises(reward: Reward, prompts: Sequence[Text], responses: Sequence[Text]) -> int | None:
    """Asked one by one, which only an error is worth."""
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            reward([prompt], [response])
        except Exception:
            return i
    return None
