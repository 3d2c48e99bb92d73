"""Language models as the space in which the interpreter's policies live: sampled, scored, and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nashpref.llm.data import Text
from nashpref.llm.encoding import Encoder, Tokens, collate
from nashpref.llm.interpreter import OPPONENTS, Draws, payoffs
from nashpref.llm.logprobs import check_model, completion_logps, quietly
from nashpref.llm.policies import Blend, Policy, Store, Weights
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.preferences.tournament import win_rates
from nashpref.llm.sampling import Mixture, Network, sample
from nashpref.llm.shared_prompt import can_share_prompts, cheapest, group_logps
from nashpref.mirror import MirrorStep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Generate = Callable[[nn.Module, Sequence[Text], int], Sequence[Sequence[str]]]
"""`(model, prompts, count) -> completions`, `count` for each prompt, by a sampler of the user's own.

The model has the weights of the policy that is meant, and the samples must be of it, at the temperature and
without any truncation that the trainer does not know of.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A prompt of the data set, and its place there, which decides what is drawn for it.

    Equal to itself alone: prompts may be lists, which have no hash.
    """

    index: int
    prompt: Text
    length: int = 1

    def __len__(self) -> int:
        return self.length

    @property
    def place(self) -> tuple[int, ...]:
        """What decides the randomness here, beside the seed, the step and the stream."""
        return (self.index,)


@dataclass(frozen=True, slots=True)
class Completions:
    """Texts, `B × K`, and the tokens of all of them, `(B·K, T)`."""

    texts: Sequence[Sequence[str]]
    tokens: Tokens


class CompletionSpace:
    """See `nashpref.llm.interpreter.Space`.

    What is drawn for a prompt depends on `seed`, the step, and the prompt's index, not on the batch or on how
    many processes share it.

    Args:
        model: a causal language model, or a PEFT model around one; its parameters that require a gradient are
            trained.
        encoder: its prompts to tokens.
        preference: which of two responses wins.
        samples: K, responses to each prompt from each policy.
        max_new_tokens: longest response.
        temperature, top_k: of sampling; log-probabilities are at the same temperature, and of all tokens.
        mixture: what stands for the geometric mixture of two policies when it is sampled: "token", its
            token-by-token form, which is another policy; or "sequence", the mixture of whole responses, by
            importance weights on samples of the former.
        generate: sample with this instead; mixtures cannot be.
        seed: of what is drawn.
        offload: see `Store`.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        preference: Preference,
        *,
        samples: int = 8,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int | None = None,
        mixture: Literal["token", "sequence"] = "token",
        generate: Generate | None = None,
        seed: int = 0,
        offload: bool = False,
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples = {samples}: at least 1 response is needed")
        check_model(model)
        self.model, self.encoder, self.preference = model, encoder, preference
        self.samples, self.max_new_tokens = samples, max_new_tokens
        self.temperature, self.top_k, self.mixture = temperature, top_k, mixture
        self.generate, self.seed = generate, seed
        self.store = Store(model, offload=offload)
        self.shares_prompts = can_share_prompts(model)

    def open(self, index: int, prompt: Text) -> Asked:
        """A prompt of the data set at this place."""
        return Asked(index, prompt, len(self.encoder.encode_prompt(prompt, room=self.max_new_tokens)))

    def of(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> CompletionSpace:
        """The same of another model, with a tokenizer of its own or this one; there it only responds."""
        other = copy.copy(self)
        other.model = model
        if tokenizer is not None:
            other.encoder = Encoder(tokenizer, self.encoder.max_length)
        return other

    def draw(
        self,
        policy: Policy | None,
        prompts: Sequence[Asked],
        step: int,
        stream: int,
        *,
        systematic: bool = False,
    ) -> Draws:
        """K completions of each prompt; `systematic`: by codes at equal distances, see `sample`."""
        texts = [asked.prompt for asked in prompts]
        uniform = torch.full((len(prompts), self.samples), 1.0 / self.samples)
        if self.generate is not None:
            return Draws(prompts, self._generated(policy, texts), uniform)
        noise = torch.from_numpy(
            np.concatenate(
                [
                    np.random.default_rng([self.seed, step, stream, *asked.place]).random(
                        (self.samples, self.max_new_tokens)
                    )
                    for asked in prompts
                ]
            )
        )
        drawn = sample(
            self._network(policy),
            self.encoder,
            texts,
            self.samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            uniforms=noise,
            codes=self._codes(noise) if systematic else None,
        )
        weights = uniform.to(drawn.logps)
        if isinstance(policy, Blend) and self.mixture == "sequence":
            weights = torch.softmax(drawn.log_z.view(uniform.shape), dim=1)
        logps = drawn.logps.view(uniform.shape) if self.top_k is None else None
        return Draws(prompts, Completions(drawn.texts, drawn.tokens), weights, logps)

    def respond(
        self, policy: Policy | None, prompts: Sequence[Asked], step: int, stream: int
    ) -> list[list[Text]]:
        """K responses to each prompt."""
        return [list(texts) for texts in self.draw(policy, prompts, step, stream).responses.texts]

    def logps(self, policy: Weights | None, draws: Draws) -> Tensor:
        """Summed over the completion's tokens."""
        shape = draws.weights.shape
        if policy is None:
            return self._scored(draws.responses.tokens, shape[1]).view(shape)
        with quietly(self.model), self.store.loaded(policy):
            return self._scored(draws.responses.tokens, shape[1]).view(shape)

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
        """Mean win-rates over responses of the opponents."""

        def draw(opponent: Policy) -> Draws:
            return self.draw(opponent, draws.prompts, at, OPPONENTS, systematic=systematic)

        return payoffs(self._win_rates, draw, step, draws, policy, drawn)

    def _win_rates(self, draws: Draws, opponent: Draws) -> Tensor:
        prompts = [asked.prompt for asked in draws.prompts]
        rates = win_rates(self.preference, prompts, draws.responses.texts, opponent.responses.texts)
        return rates.to(draws.weights)

    def some(self, draws: Draws, columns: Tensor) -> Draws:
        """Those rows of tokens; nobody asks for their texts."""
        B, K = draws.weights.shape
        rows = (columns + K * torch.arange(B, device=columns.device)[:, None]).flatten()
        tokens = Tokens(*(tensor[rows] for tensor in draws.responses.tokens))
        width = int(tokens.attention_mask.sum(dim=1).max())
        tokens = Tokens(*(tensor[:, :width] for tensor in tokens))
        weights = torch.full_like(columns, 1.0 / columns.shape[1], dtype=draws.weights.dtype)
        return Draws(draws.prompts, Completions((), tokens), weights)

    def _scored(self, tokens: Tokens, count: int) -> Tensor:
        """Rows of the same prompt together, as far as that is cheaper and the model can."""
        size = cheapest(self.model, tokens, count) if self.shares_prompts else 1
        if size == 1:
            return completion_logps(self.model, tokens, temperature=self.temperature)
        return group_logps(self.model, tokens, size, temperature=self.temperature)

    def _codes(self, noise: Tensor) -> Tensor:
        """`(i + u)/K`, with a uniform number u for each prompt."""
        offset = noise[:: self.samples, :1]
        return ((torch.arange(self.samples) + offset) / self.samples).flatten()

    def _network(self, policy: Policy | None) -> nn.Module | Mixture:
        def network(weights: Weights) -> Network:
            return Network(self.model, partial(self.store.loaded, weights))

        if isinstance(policy, Blend):
            return Mixture(
                [network(part) for part, _ in policy.parts], [weight for _, weight in policy.parts]
            )
        return self.model if policy is None else Mixture([network(policy)], [1.0])

    def _generated(self, policy: Policy | None, prompts: Sequence[Text]) -> Completions:
        assert self.generate is not None
        if isinstance(policy, Blend):
            raise ValueError(
                "generate: a mixture is sampled token by token from several networks at once, which a "
                "sampler of one cannot do; leave generate out, or choose a rule without a mixture"
            )
        loaded: Any = nullcontext() if policy is None else self.store.loaded(policy)
        with quietly(self.model), loaded:
            texts = self.generate(self.model, prompts, self.samples)
        if len(texts) != len(prompts) or any(len(each) != self.samples for each in texts):
            raise ValueError(
                f"generate gave {[len(each) for each in texts]} completions: {self.samples} for each of "
                f"{len(prompts)} prompts are needed"
            )
        rows = [
            row
            for prompt, each in zip(prompts, texts, strict=True)
            for row in self.encoder.encode_group(prompt, list(each))
        ]
        device = next(self.model.parameters()).device
        return Completions(texts, collate(rows, self.encoder.pad_id).to(device))
