"""Preference tasks over short strings that are known exactly: the game, its equilibria, any model's gap.

A *response* is a word of symbols, such as "a c b"; a judge sees it as a point in a few planes, and prefers a
to b with probability `σ(Σ_k u_k(a) w_k(b) − w_k(a) u_k(b))`: a quarter turn of the circle for a cycle,
`(r, 1)` for a reward. Several judges make a population. What a point is depends on the prompt, and so do the
equilibria.

A language model can also say what is no response at all. All of this is one action more, *invalid*, which
loses to every response and ties with itself. So the exact game has n + 1 actions, a model's policy is a row
of n + 1 probabilities, of which the last is its leak, and the gap is that of the model itself, not of the
model given that it behaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from nashpref.games.matrix import MatrixGame
from nashpref.llm.data import Demonstration, Pair, Text
from nashpref.llm.encoding import Encoder, Tokens
from nashpref.llm.logprobs import causal_model, check_temperature, hidden_states, logits_of, quietly
from nashpref.llm.playground import tiny_tokenizer
from nashpref.metrics import check_beta, regularised_gap, unregularised_gap
from nashpref.policies import FloatArray, IntArray, check_policy, log_policy, normalise

INVALID = "<invalid>"  # label of the last action
MOST = 100_000  # responses that are enumerated
ROWS = 4096  # prefixes put through a model at once
BLOCK = 1 << 21  # pairs of responses compared at once: 16 MiB

Points = Callable[[int, IntArray], FloatArray]
"""`(prompt, words (N, T)) -> (judges, planes, 2, N)`: symbols by their number, −1 after a word's end."""


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts, responses and an exact preference between them; as made in `nashpref.llm.environments`.

    Called with N prompts and two responses each it returns `Pr(a ≻ b | x)`: a `Preference`. White space
    between symbols does not count.

    Attributes:
        prompts: B of them.
        alphabet: V symbols; a response has from `shortest` to `longest` of them.
        points: how the judges see the responses.
        weights: of the judges, of sum 1.
        tilt: `(B, longest, V)`; the demonstrator writes y with probability
            `μ(y|x) ∝ exp(Σ_t tilt[x, t, y_t])`.
    """

    prompts: tuple[str, ...]
    alphabet: tuple[str, ...]
    shortest: int
    longest: int
    points: Points
    weights: tuple[float, ...]
    tilt: FloatArray

    # --- what can be said ---

    @property
    def count(self) -> int:
        """n, the number of responses."""
        return sum(len(self.alphabet) ** length for length in range(self.shortest, self.longest + 1))

    @cached_property
    def responses(self) -> tuple[str, ...]:
        """All n responses, the short ones first and then in alphabetical order."""
        return tuple(self._text(word) for word in self._words)

    @property
    def max_new_tokens(self) -> int:
        """Enough for every response and the end-of-sequence token."""
        return self.longest + 1

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token for each symbol and each word of the prompts."""
        return tiny_tokenizer([*self.prompts, " ".join(self.alphabet)])

    # --- the preference ---

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """`Pr(a ≻ b | prompt)` for each of N triples, `(N,)` float64; `p(a, b) + p(b, a) = 1` exactly."""
        if not len(prompts) == len(a) == len(b):
            raise ValueError(
                f"{len(prompts)} prompts, {len(a)} and {len(b)} responses: as many of each are needed"
            )
        x, first, second = self._numbers(prompts), self._parse(a), self._parse(b)
        advantage = np.zeros(len(prompts))
        for k in np.unique(x).tolist():
            at = x == k
            advantage[at] = self._advantage(self.points(k, first[at]), self.points(k, second[at]))
        return torch.from_numpy(0.5 + _judged(advantage, _valid(first), _valid(second)))

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """`P[i, j] = Pr(response i ≻ response j | prompt)`, K×K; the numbers that the calls give."""
        (k,), words = self._numbers([prompt]), self._parse(responses)
        points, valid = self.points(int(k), words), _valid(words)
        advantage = self._advantage(points[..., :, None], points[..., None, :])
        return 0.5 + _judged(advantage, valid[:, None], valid)

    def cross(
        self, prompts: Sequence[Text], a: Sequence[Sequence[Text]], b: Sequence[Sequence[Text]]
    ) -> Tensor:
        """`Pr(a_i ≻ b_k | prompt)` of N prompts with K and K' responses, `(N, K, K')`; as the calls."""
        rates = []
        for k, ours, theirs in zip(self._numbers(prompts).tolist(), a, b, strict=True):
            first, second = self._parse(ours), self._parse(theirs)
            advantage = self._advantage(
                self.points(k, first)[..., :, None], self.points(k, second)[..., None, :]
            )
            rates.append(0.5 + _judged(advantage, _valid(first)[:, None], _valid(second)))
        return torch.from_numpy(np.stack(rates))

    def game(self, *, invalid: bool = True, limit: int = 2048) -> MatrixGame:
        """The exact game of every prompt, B games of n + 1 actions, labelled by the responses.

        Args:
            invalid: with the last action; without it, n actions.
            limit: most responses. Each game takes 24 n² bytes.

        Raises:
            ValueError: more responses than that.
        """
        if self.count > limit:
            size = 24 * len(self.prompts) * self.count**2 / 1e9
            raise ValueError(
                f"{self.count} responses, limit = {limit}: the games of {len(self.prompts)} prompts would "
                f"take {size:.3g} GB; `gap` needs no matrix, and fewer responses can be given to `matrix`"
            )
        actions = [*self.responses, INVALID] if invalid else list(self.responses)
        return MatrixGame([self.matrix(prompt, actions) for prompt in self.prompts], labels=actions)

    # --- a model in this game ---

    def policy(self, model: nn.Module, *, temperature: float = 1.0) -> FloatArray:
        """π(y|x) of every response and, last, of all that is none: `(B, n + 1)`, rows of sum 1.

        A response is its symbols' tokens and the end-of-sequence token. The probabilities of one token after
        another are multiplied along the tree of all prefixes, each read once, in float64; the leak is summed
        from what leaves the tree, and so is accurate however small it is. Token sequences with a special
        token inside are invalid, although a decoder may print them as a response.

        Args:
            model: a causal language model with the task's tokenizer, or a PEFT model around one.
            temperature: of the logits, > 0.

        Raises:
            ValueError: a model of another vocabulary, too many responses to enumerate.
        """
        check_temperature(temperature)
        self._check_enumerable()
        encoder = Encoder(self.tokenizer)
        if (size := causal_model(model).config.get_text_config().vocab_size) < len(self.tokenizer):
            raise ValueError(
                f"the model knows {size} tokens, the task's tokenizer {len(self.tokenizer)}: build the model "
                "with task.tokenizer"
            )
        symbols = self.tokenizer.convert_tokens_to_ids(list(self.alphabet))
        rows = [
            word_probabilities(
                model,
                torch.tensor([list(encoder.encode_prompt(prompt).ids)]),
                torch.tensor(symbols),
                (self.shortest, self.longest),
                encoder.end_id,
                temperature,
            )
            for prompt in self.prompts
        ]
        return np.concatenate(rows)

    def payoff(self, policy: ArrayLike) -> FloatArray:
        """`q(y) = P(y ≻ policy) − 1/2` of every action, `(B, n + 1)`, as `game().payoff`, without a matrix.

        O(B n²) time and O(n) memory.
        """
        pi, q = self._policy(policy), np.empty(self._shape)
        words = self._words
        step = max(1, BLOCK // len(words))
        for k, each in enumerate(pi):
            points = self.points(k, words)
            for i in range(0, len(words), step):
                rows = points[..., i : i + step, None]
                q[k, :-1][i : i + step] = self._advantage(rows, points[..., None, :]) @ each[:-1]
        q[:, :-1] += pi[:, -1:] / 2.0
        q[:, -1] = -pi[:, :-1].sum(axis=1) / 2.0
        return q

    def gap(
        self, policy: nn.Module | ArrayLike, beta: float = 0.0, reference: nn.Module | ArrayLike | None = None
    ) -> FloatArray:
        """The exact (regularised) duality gap for each prompt, `(B,)`: `nashpref.duality_gap` in `game()`.

        With β > 0 the KL is that of policies over n + 1 actions. What a model prefers among invalid texts, at
        most `2β · leak · KL(π ‖ μ given invalid)`, is not counted.

        Args:
            policy: a model, or probabilities `(B, n + 1)` or, without a leak, `(B, n)`.
            beta: weight of the KL towards the reference, ≥ 0.
            reference: μ, likewise; needed when β > 0.

        Raises:
            ValueError: β > 0 without a reference, or with one that excludes what the policy does (as
                `task.reference` does for every model: a model has a leak).
        """
        pi, beta = self._policy(policy), check_beta(beta)
        q = self.payoff(pi)
        if beta == 0.0:
            return unregularised_gap(q)
        if reference is None:
            raise ValueError(f"beta = {beta} needs reference=, a model or its probabilities")
        mu = self._policy(reference, "reference")
        if (bad := (mu == 0.0) & (pi > 0.0)).any():
            k, i = np.argwhere(bad)[0].tolist()
            name = [*self.responses, INVALID][i]
            raise ValueError(
                f"the reference never says {name!r} to {self.prompts[k]!r}, the policy does with probability "
                f"{pi[k, i]:.3g}, and so their KL is infinite: a model's reference is a model"
            )
        return regularised_gap(log_policy(pi), q, beta, log_policy(mu))

    def metrics(
        self, beta: float = 0.0, reference: nn.Module | ArrayLike | None = None
    ) -> Callable[[nn.Module], dict[str, float]]:
        """What a trainer's `compute_metrics` takes: the exact gaps of a model, averaged over the prompts.

        `gap` is that of the regularised game, `gap/unregularised` the original game's (the same with β = 0,
        and left out then), and `leak` the probability of what is no response.

        Args:
            beta, reference: as of `gap`. The probabilities of a model are taken at once: it may be the one
                that is trained.
        """
        mu = None if reference is None else self._policy(reference, "reference")
        if check_beta(beta) > 0.0 and mu is None:
            raise ValueError(f"beta = {beta} needs reference=, a model or its probabilities")

        def measure(model: nn.Module) -> dict[str, float]:
            pi = self.policy(model)
            found = {"gap": float(self.gap(pi, beta, mu).mean()), "leak": float(pi[:, -1].mean())}
            return found | ({"gap/unregularised": float(self.gap(pi).mean())} if beta > 0.0 else {})

        return measure

    # --- data ---

    @cached_property
    def reference(self) -> FloatArray:
        """μ of the demonstrator, `(B, n)`, positive everywhere: what supervised fine-tuning aims at."""
        padded = np.pad(self.tilt, ((0, 0), (0, 0), (0, 1)))
        return normalise(padded[:, np.arange(self.longest), self._words].sum(axis=-1))[1]

    def demonstrations(self, rng: Generator, count: int) -> list[Demonstration]:
        """`count` answers of the demonstrator, drawn from μ; every prompt in turn."""
        x = np.arange(count) % len(self.prompts)
        words = self._draw(rng, x, self.tilt)
        return [Demonstration(self.prompts[k], self._text(word)) for k, word in zip(x, words, strict=True)]

    def pairs(
        self,
        rng: Generator,
        count: int,
        policy: nn.Module | ArrayLike | None = None,
        *,
        soft: bool = False,
    ) -> list[Pair]:
        """`count` judged pairs of independent responses, the same one twice included; every prompt in turn.

        Args:
            rng: draws the responses and the verdicts.
            count: of pairs.
            policy: draws the responses, a model or probabilities, given that they are valid; None: uniform,
                also beyond enumeration.
            soft: label the first response with `p_chosen`, its probability to win, be it above 1/2 or not,
                instead of drawing a winner.
        """
        x = np.tile(np.arange(count) % len(self.prompts), 2)
        if policy is None:
            words = self._draw(rng, x, np.zeros_like(self.tilt))
        else:
            words = self._draw_from(rng, self._policy(policy)[:, :-1], x)
        prompts = [self.prompts[k] for k in x[:count]]
        texts = [self._text(word) for word in words]
        a, b = texts[:count], texts[count:]
        p = self(prompts, a, b).numpy()
        if soft:
            return [Pair(*each) for each in zip(prompts, a, b, p.tolist(), strict=True)]
        wins = rng.random(count) < p
        return [
            Pair(prompt, *((first, second) if won else (second, first)))
            for prompt, first, second, won in zip(prompts, a, b, wins, strict=True)
        ]

    # --- inside ---

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.prompts), self.count + 1

    @cached_property
    def _words(self) -> IntArray:
        """All responses, `(n, longest)`."""
        self._check_enumerable()
        V, parts = len(self.alphabet), []
        for length in range(self.shortest, self.longest + 1):
            words = np.indices((V,) * length).reshape(length, -1).T
            parts.append(np.pad(words, ((0, 0), (0, self.longest - length)), constant_values=-1))
        return np.concatenate(parts)

    def _check_enumerable(self) -> None:
        if self.count > MOST:
            raise ValueError(
                f"{self.count} responses are too many to enumerate (at most {MOST}); pairs of them can be "
                "drawn and judged, and best responses sampled"
            )

    @cached_property
    def _index(self) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of the prompts and of the symbols."""
        return _numbered(self.prompts), _numbered(self.alphabet)

    def _numbers(self, prompts: Sequence[Text]) -> IntArray:
        known = self._index[0]
        for prompt in prompts:
            if not isinstance(prompt, str) or prompt not in known:
                raise ValueError(f"{prompt!r} is no prompt of this task; there are {', '.join(self.prompts)}")
        return np.array([known[str(prompt)] for prompt in prompts], dtype=np.int64)

    def _parse(self, responses: Sequence[Text]) -> IntArray:
        """`(N, longest)`, −1 after the end; an invalid response is empty."""
        known = self._index[1]
        words = np.full((len(responses), self.longest), -1)
        for word, response in zip(words, responses, strict=True):
            if not isinstance(response, str):
                raise ValueError(f"{response!r:.60} is no text: the responses of this task are")
            symbols = [known.get(symbol, -1) for symbol in response.split()]
            if self.shortest <= len(symbols) <= self.longest and min(symbols) >= 0:
                word[: len(symbols)] = symbols
        return words

    def _text(self, word: IntArray) -> str:
        return " ".join(self.alphabet[i] for i in word.tolist() if i >= 0)

    def _advantage(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """`Pr(a ≻ b) − 1/2` from points, broadcast. Odd to the last bit: nothing is summed in another order
        when a and b change places."""
        total = np.zeros(())
        for weight, ours, theirs in zip(self.weights, a, b, strict=True):
            logit = np.zeros(())
            for (u_a, w_a), (u_b, w_b) in zip(ours, theirs, strict=True):
                logit = logit + (u_a * w_b - w_a * u_b)
            total = total + 0.5 * weight * np.tanh(0.5 * logit)
        return np.asarray(total)

    def _policy(self, policy: nn.Module | ArrayLike, name: str = "policy") -> FloatArray:
        """`(B, n + 1)`."""
        if isinstance(policy, nn.Module):
            return self.policy(policy)
        given = np.asarray(policy, dtype=np.float64)
        if given.shape[-1:] == (self.count,):
            given = np.pad(given, [(0, 0)] * (given.ndim - 1) + [(0, 1)])
        return check_policy(given, self._shape, name)

    def _draw(self, rng: Generator, x: IntArray, tilt: FloatArray) -> IntArray:
        """A word for each prompt in `x`, with probability `∝ exp(Σ_t tilt[x, t, y_t])`."""
        log_z = np.logaddexp.reduce(tilt, axis=-1).cumsum(axis=-1)  # of words of length t + 1
        lengths = self.shortest + _gumbel_max(rng, log_z[x, self.shortest - 1 :])
        words = _gumbel_max(rng, tilt[x])
        return np.where(np.arange(self.longest) < lengths[:, None], words, -1)

    def _draw_from(self, rng: Generator, policy: FloatArray, x: IntArray) -> IntArray:
        """A response for each prompt in `x`, from unnormalised probabilities `(B, n)`."""
        drawn = np.empty(len(x), dtype=np.int64)
        for k in np.unique(x).tolist():
            cumulative = policy[k].cumsum()
            if not cumulative[-1] > 0.0:
                raise ValueError(f"the policy gives no valid response to {self.prompts[k]!r}")
            at = x == k
            drawn[at] = np.searchsorted(cumulative, rng.random(at.sum()) * cumulative[-1], side="right")
        return self._words[drawn]


def word_probabilities(
    model: nn.Module,
    prompts: Tensor,
    symbols: Tensor,
    lengths: tuple[int, int],
    end_id: int,
    temperature: float = 1.0,
) -> FloatArray:
    """The probability of each word of V symbols and, last, of all else, `(N, n + 1)`; every prefix read once.

    Args:
        model: a causal language model.
        prompts: token ids, `(N, T)`, without padding.
        symbols: the token of each symbol, `(V,)`.
        lengths: the fewest and the most symbols of a word, which ends with the token `end_id`.
        end_id: see there.
        temperature: of the logits.
    """
    N, V = len(prompts), len(symbols)
    shortest, longest = lengths
    prefixes, reached = prompts, torch.zeros(N, 1, dtype=torch.float64)  # log-probability of each prefix
    leak, ended = torch.zeros(N, 1, dtype=torch.float64), []
    for length in range(longest + 1):
        log_p = reached[:, :, None] + _next_logps(model, prefixes, temperature).view(*reached.shape, -1)
        if length >= shortest:
            ended.append(log_p[:, :, end_id].exp())
            log_p[:, :, end_id] = -torch.inf
        if length < longest:
            reached = log_p[:, :, symbols].flatten(1)
            log_p[:, :, symbols] = -torch.inf
            longer = symbols.repeat(len(prefixes))[:, None]
            prefixes = torch.cat([prefixes.repeat_interleave(V, dim=0), longer], dim=1)
        leak += log_p.exp().sum(dim=(1, 2))[:, None]
    return np.asarray(torch.cat([*ended, leak], dim=1).numpy())


def _next_logps(model: nn.Module, prefixes: Tensor, temperature: float) -> Tensor:
    """log π(token | prefix) of every token, `(N, vocabulary)` float64 on the CPU."""
    causal, parts = causal_model(model), []
    with quietly(model):
        for ids in torch.split(prefixes.to(causal.device), ROWS):
            attended = torch.ones_like(ids)
            states = hidden_states(causal, Tokens(ids, attended, attended.bool()))[:, -1]
            parts.append(torch.log_softmax(logits_of(causal, states).double() / temperature, dim=-1).cpu())
    return torch.cat(parts)


def _judged(advantage: FloatArray, valid_a: FloatArray, valid_b: FloatArray) -> FloatArray:
    """`P − 1/2`, where what is invalid loses to what is valid and ties with its like."""
    return np.where(valid_a * valid_b > 0.0, advantage, (valid_a - valid_b) / 2.0)


def _valid(words: IntArray) -> FloatArray:
    return (words[:, 0] >= 0).astype(np.float64)


def _gumbel_max(rng: Generator, logits: FloatArray) -> IntArray:
    """Draws from softmax over the last axis."""
    return np.asarray(np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1))


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}
