"""Dialogues that are known exactly: an environment, a preference, and the Markov game that the two make.

In each of H turns the policy says a word of a few symbols, and the user answers with one of R lines, with
probabilities that depend on the word. Judges see a dialogue as a point in a few planes, as in
`nashpref.llm.exact_task`; it is compared at its end, or after every turn. Whoever says what is no word ends
the dialogue, loses to everyone who has not, and ties with everyone who has: of the n + 1 actions the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from scipy.sparse import csr_array
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import nashpref as npf
from nashpref.games.markov import MarkovGame
from nashpref.llm.data import Demonstration, Messages, Text
from nashpref.llm.encoding import Encoder
from nashpref.llm.exact_task import word_probabilities
from nashpref.llm.playground import tiny_tokenizer
from nashpref.policies import FloatArray, IntArray

Points = Callable[[int, IntArray], FloatArray]
"""`(prompt, dialogues (N, 2h − 1)) -> (planes, 2, N)`: numbers of word, line, word, …, word."""


@dataclass(frozen=True, eq=False)
class DialogueTask:
    """Prompts, an environment and a preference, as made in `nashpref.llm.dialogue_tasks`.

    Attributes:
        prompts: B of them.
        alphabet, length: words are of `length` of the V symbols: n = V^length.
        lines: what the user can say.
        user: `(B, H − 1, n, R)`, probabilities of the lines after each word in turn 1 … H − 1.
        points: how the judges see a dialogue.
        every_turn: whether it is compared after every turn, with payoffs summed, or at its end.
        tilt: `(B, H, length, V)`; the demonstrator says the word y in turn h with probability
            `∝ exp(Σ_t tilt[x, h, t, y_t])`.
    """

    prompts: tuple[str, ...]
    alphabet: tuple[str, ...]
    length: int
    lines: tuple[str, ...]
    user: FloatArray
    points: Points
    every_turn: bool
    tilt: FloatArray

    # --- the environment ---

    @property
    def turns(self) -> int:
        """H."""
        return int(self.tilt.shape[1])

    def reset(self, prompt: Text) -> Messages:
        """The user says the prompt."""
        if prompt not in self._numbers:
            raise ValueError(f"{prompt!r:.60} is no prompt of this task; there are {', '.join(self.prompts)}")
        return [{"role": "user", "content": prompt}]

    def respond(
        self, prompts: Sequence[Text], dialogues: Sequence[Messages], generators: Sequence[Generator]
    ) -> list[str | None]:
        """One of the lines, or None where the policy has said no word."""
        said: list[str | None] = []
        for prompt, dialogue, generator in zip(prompts, dialogues, generators, strict=True):
            spoken = [message["content"] for message in dialogue if message["role"] == "assistant"]
            word = self._words.get(_joined(spoken[-1]))
            if word is None or len(spoken) == self.turns:
                said.append(None)
            else:
                p = self.user[self._numbers[str(prompt)], len(spoken) - 1, word]
                said.append(self.lines[int(generator.choice(len(p), p=p))])
        return said

    # --- the preference ---

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """`Pr(a ≻ b)` for each of N pairs of dialogues after their openings, `(N,)` float64."""
        return self.cross(prompts, [[each] for each in a], [[each] for each in b])[:, 0, 0]

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """`P[i, j] = Pr(response i ≻ response j)`, K×K."""
        return np.asarray(self.cross([prompt], [responses], [responses])[0].numpy())

    def cross(
        self, prompts: Sequence[Text], a: Sequence[Sequence[Text]], b: Sequence[Sequence[Text]]
    ) -> Tensor:
        """`Pr(a_i ≻ b_k)`, `(N, K, K')`; dialogues that are over are compared as they are."""
        rates = []
        for prompt, ours, theirs in zip(prompts, a, b, strict=True):
            k = self.number(prompt)
            (first, h), (second, g) = self.places(ours), self.places(theirs)
            rates.append(0.5 + self._payoffs[max(h, g) - 1][k][np.ix_(first, second)])
        return torch.from_numpy(np.stack(rates))

    # --- by numbers ---

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All n of them, in the order of actions."""
        return tuple(self._words)

    def number(self, prompt: Text) -> int:
        """Of a prompt, also as the opening that it is.

        Raises:
            ValueError: it is none of this task's.
        """
        said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        self.reset(said)
        return self._numbers[said]

    def dialogue(self, k: int, said: Sequence[int]) -> Messages:
        """With prompt k, from the numbers of a word, the line after it, and so on."""
        texts = [self.words[i] if t % 2 == 0 else self.lines[i] for t, i in enumerate(said)]
        roles = ("assistant", "user")
        return [
            {"role": "user", "content": self.prompts[k]},
            *({"role": roles[t % 2], "content": text} for t, text in enumerate(texts)),
        ]

    def state(self, said: Sequence[int]) -> int:
        """Where the game is after these: see `games`."""
        place = 0
        for t, i in enumerate(said):
            place = place * (len(self.lines) if t % 2 else len(self.words)) + i
        return place

    def places(self, dialogues: Sequence[Text]) -> tuple[IntArray, int]:
        """Where dialogues of h turns are in the order of final states, and h; −1: over before."""
        places, turns = np.full(len(dialogues), -1), 1
        for i, dialogue in enumerate(dialogues):
            if isinstance(dialogue, str):
                dialogue = [{"role": "assistant", "content": dialogue}]
            said = [message["content"] for message in dialogue]
            turns = max(turns, (len(said) + 1) // 2)
            words = [self._words.get(_joined(word)) for word in said[::2]]
            if None not in words:
                places[i] = self.state(
                    [self.lines.index(text) if t % 2 else words[t // 2] or 0 for t, text in enumerate(said)]
                )
        return places, turns

    # --- the game ---

    @cached_property
    def games(self) -> tuple[MarkovGame, ...]:
        """The exact game of every prompt, of n + 1 actions.

        The states of turn h are the dialogues so far, `word, line, …, line` in the order of
        `itertools.product`, and last, from turn 2 on, one for those that are over. Final states are dialogues
        likewise.
        """
        return tuple(self._game(k) for k in range(len(self.prompts)))

    def policy(self, model: nn.Module, *, temperature: float = 1.0) -> list[FloatArray]:
        """A model's policy in each game, `(H, S, n + 1)`; uniform where there is nothing to say."""
        encoder, wordless = Encoder(self.tokenizer), 1.0 / (len(self._words) + 1)
        tables = [np.full(game.policy_shape, wordless) for game in self.games]
        groups: dict[int, list[tuple[tuple[int, int, int], Sequence[int]]]] = {}  # by the number of tokens
        for k in range(len(self.prompts)):
            for h in range(self.turns):
                for s, past in enumerate(self._pasts(h)):
                    ids = encoder.encode_prompt(self.dialogue(k, past)).ids
                    groups.setdefault(len(ids), []).append(((k, h, s), list(ids)))
        symbols = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(self.alphabet)))
        lengths = (self.length, self.length)
        for group in groups.values():
            places, rows = zip(*group, strict=True)
            found = word_probabilities(
                model, torch.tensor(rows), symbols, lengths, encoder.end_id, temperature
            )
            for (k, h, s), probabilities in zip(places, found, strict=True):
                tables[k][h, s] = probabilities
        return tables

    def gap(
        self,
        policy: nn.Module | Sequence[FloatArray],
        beta: float = 0.0,
        reference: nn.Module | Sequence[FloatArray] | None = None,
    ) -> FloatArray:
        """The exact (regularised) duality gap in the game of each prompt, `(B,)`: `nashpref.duality_gap`."""
        tables = self.policy(policy) if isinstance(policy, nn.Module) else policy
        mu: Sequence[Any] = [None] * len(tables)
        if reference is not None:
            mu = self.policy(reference) if isinstance(reference, nn.Module) else reference
        return np.array(
            [
                npf.duality_gap(game, pi, beta=beta, reference=each)
                for game, pi, each in zip(self.games, tables, mu, strict=True)
            ]
        )

    def average(self, policies: Sequence[Sequence[FloatArray]]) -> list[FloatArray]:
        """The policy of the mean occupancy measure in each game: that of playing one of them throughout."""
        averages = []
        for game, tables in zip(self.games, zip(*policies, strict=True), strict=True):
            plan = np.mean([game.plan(game.flat(table)) for table in tables], axis=0)
            mass = plan.sum(axis=-1, keepdims=True)
            pi = np.where(mass > 0.0, plan / np.where(mass > 0.0, mass, 1.0), game.flat(tables[0]))
            averages.append(game.full(pi, tables[0]))
        return averages

    def metrics(
        self, beta: float = 0.0, reference: nn.Module | Sequence[FloatArray] | None = None
    ) -> Callable[[nn.Module], dict[str, float]]:
        """What a trainer's `compute_metrics` takes: exact gaps of a model, as of `Task.metrics`.

        `gap` in the regularised game, `gap/unregularised` with β > 0, and `leak`, the probability that the
        dialogue ends with what is no word.
        """
        mu = self.policy(reference) if isinstance(reference, nn.Module) else reference
        if beta > 0.0 and mu is None:
            raise ValueError(f"beta = {beta} needs reference=, a model or its probabilities")

        def measure(model: nn.Module) -> dict[str, float]:
            tables = self.policy(model)
            found = {"gap": float(self.gap(tables, beta, mu).mean()), "leak": self.leak(tables)}
            return found | ({"gap/unregularised": float(self.gap(tables).mean())} if beta > 0.0 else {})

        return measure

    def leak(self, policy: Sequence[FloatArray]) -> float:
        """The probability that a dialogue ends with what is no word, averaged over the prompts."""
        leaks = []
        for game, table in zip(self.games, policy, strict=True):
            plan = game.plan(game.flat(table))
            own = [
                range(layer.start, layer.start + (len(self._words) * len(self.lines)) ** h)
                for h, layer in enumerate(game.layers)
            ]
            leaks.append(sum(plan[0, list(places), -1].sum() for places in own))
        return float(np.mean(leaks))

    # --- data ---

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token for each symbol and each word of the prompts and lines."""
        return tiny_tokenizer([*self.prompts, *self.lines, " ".join(self.alphabet)])

    @property
    def max_new_tokens(self) -> int:
        """Enough for every word and the end-of-sequence token."""
        return self.length + 1

    def demonstrations(self, rng: Generator, count: int) -> list[Demonstration]:
        """`count` dialogues of the demonstrator with the user, whose lines are masked; prompts in turn."""
        shown = []
        for i in range(count):
            k = i % len(self.prompts)
            messages: list[Mapping[str, str]] = []
            for h in range(self.turns):
                symbols = [
                    int(rng.choice(len(t), p=np.exp(t - np.logaddexp.reduce(t)))) for t in self.tilt[k, h]
                ]
                word = " ".join(self.alphabet[s] for s in symbols)
                messages.append({"role": "assistant", "content": word})
                if h + 1 < self.turns:
                    p = self.user[k, h, self._words[word]]
                    messages.append({"role": "user", "content": self.lines[int(rng.choice(len(p), p=p))]})
            shown.append(Demonstration([*self.reset(self.prompts[k])], messages))
        return shown

    # --- inside ---

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {prompt: k for k, prompt in enumerate(self.prompts)}

    @cached_property
    def _words(self) -> dict[str, int]:
        return {" ".join(word): i for i, word in enumerate(product(self.alphabet, repeat=self.length))}

    def _pasts(self, h: int) -> list[tuple[int, ...]]:
        """Words and lines before turn h = 0 … H − 1."""
        return list(product(*[range(len(self._words)), range(len(self.lines))] * h))

    @cached_property
    def _payoffs(self) -> list[list[FloatArray]]:
        """`P − 1/2` between the dialogues of h = 1 … H turns, those that are over last, by prompt."""
        all_payoffs = []
        for h in range(self.turns):
            dialogues = np.array(list(product(*self._axes(h))), dtype=np.int64)
            each = []
            for k in range(len(self.prompts)):
                points = self.points(k, dialogues)
                A = np.full((len(dialogues) + 1,) * 2, 0.5)
                A[:-1, :-1] = _advantage(points[..., :, None], points[..., None, :])
                A[-1], A[-1, -1] = -0.5, 0.0
                each.append(A)
            all_payoffs.append(each)
        return all_payoffs

    def _axes(self, h: int) -> list[range]:
        n, R = len(self._words), len(self.lines)
        return [range(n), *[range(R), range(n)] * h]

    def _game(self, k: int) -> MarkovGame:
        n, R, H = len(self._words), len(self.lines), self.turns
        counts = [(n * R) ** h for h in range(H)]  # dialogues before each turn
        S = counts[-1] * n + 1 if not self.every_turn else counts[-1] + 1
        transitions = []
        for h in range(H):
            last = h + 1 == H
            if last and self.every_turn:  # leads nowhere that is compared
                transitions.append(csr_array((S * (n + 1), S)))
                continue
            ahead = counts[h] * n if last else counts[h + 1]  # where those are that are over
            p = np.ones((n, 1)) if last else self.user[k, h]
            s, a, r = np.indices((counts[h], n, p.shape[1])).reshape(3, -1)
            rows, columns = s * (n + 1) + a, (s * n + a) * p.shape[1] + r
            over = np.concatenate(
                [np.arange(counts[h]) * (n + 1) + n, np.arange(counts[h] * (n + 1), S * (n + 1))]
            )
            transitions.append(
                csr_array(
                    (
                        np.concatenate([p[a, r], np.ones(len(over))]),
                        (np.concatenate([rows, over]), np.concatenate([columns, np.full(len(over), ahead)])),
                    ),
                    shape=(S * (n + 1), S),
                )
            )
        if not self.every_turn:
            return MarkovGame(transitions, 0.5 + self._payoffs[-1][k], 0)
        preference = np.full((H, S * (n + 1), S * (n + 1)), 0.5)
        for h in range(H):
            place = np.full((S, n + 1), -1)
            place[: counts[h], :n] = np.arange(counts[h] * n).reshape(-1, n)
            flat = place.ravel()
            preference[h] += self._payoffs[h][k][np.ix_(flat, flat)]
        return MarkovGame(transitions, preference.reshape(H, S, n + 1, S, n + 1), 0)


def _advantage(a: FloatArray, b: FloatArray) -> FloatArray:
    """`σ(Σ_planes u_a w_b − w_a u_b) − 1/2`, odd to the last bit."""
    logit = np.zeros(())
    for (u_a, w_a), (u_b, w_b) in zip(a, b, strict=True):
        logit = logit + (u_a * w_b - w_a * u_b)
    return np.asarray(0.5 * np.tanh(0.5 * logit))


def _joined(text: str) -> str:
    return " ".join(text.split())
