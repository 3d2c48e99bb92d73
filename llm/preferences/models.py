"""Three preference models: two responses read together, embedded in planes, or given a reward each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nashpref.llm.data import Pair, Text
from nashpref.llm.encoding import Encoded, EncodedPair, Tokens
from nashpref.llm.preferences.adapters import key_of
from nashpref.llm.preferences.backbone import at
from nashpref.llm.preferences.base import PreferenceConfig, PreferenceModel, mean, probabilities
from nashpref.policies import FloatArray

__all__ = [
    "BradleyTerryModel",
    "GeneralPreferenceModel",
    "PairwisePreferenceModel",
    "PreferenceConfig",
    "PreferenceModel",
    "ResponseModel",
]

INITIAL_SCALE = 1.4  # log λ of a plane: probabilities within 0.02 … 0.98 can be said from the start


class PairwisePreferenceModel(PreferenceModel):  # type: ignore[no-untyped-call]
    """A cross-encoder that reads both responses: `logit p(a ≻ b | x) = (f(x, a, b) − f(x, b, a))/2`.

    The most expressive of the three, and the slowest: a K×K matrix takes K(K − 1) sequences. With pooling
    "mean", which is for bidirectional backbones, f is read off the mean over a, with b in its context: a mean
    over both hardly says which came first.

    Source: the pairwise model of RLHFlow (arXiv:2405.07863) and SLiC-HF, made antisymmetric.
    """

    def encode(self, pair: Pair) -> EncodedPair:
        """`x a b` and `x b a`."""
        return EncodedPair(
            self._both(pair.prompt, pair.chosen, pair.rejected),
            self._both(pair.prompt, pair.rejected, pair.chosen),
            pair.p_chosen,
            pair.margin,
        )

    def _both(self, prompt: Text, first: Text, second: Text) -> Encoded:
        """The tokens of the prompt, the first response and the second, each ended as a completion is."""
        encoder = self.encoder
        one, two = encoder.encode_group(prompt, [first, second])
        ids = [*one.ids, *two.ids[two.start :]]
        limit = self.config.max_tokens
        dropped = 0 if limit is None else min(max(0, len(ids) - limit), one.start - 1)
        second_response = range(len(one.ids) - dropped, len(ids) - dropped)
        return Encoded(ids[dropped:], one.start - dropped, others=second_response, dropped=dropped)

    def _pooled(self, states: Tensor, tokens: Tokens) -> Tensor:
        if self.config.pooling == "mean":
            return mean(states, tokens.completion_mask)
        return super()._pooled(states, tokens)

    def pair_logits(self, tokens: Tokens) -> Tensor:
        """`(f_ab − f_ba)/2`."""
        ab, ba = self.features(tokens)[:, 0].chunk(2)
        return (ab - ba) / 2.0

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K(K − 1) sequences."""
        K = len(responses)
        f = np.zeros((K, K))
        ordered = [(i, j) for i in range(K) for j in range(K) if i != j]
        if ordered:
            rows = [self._both(prompt, responses[i], responses[j]) for i, j in ordered]
            f[tuple(zip(*ordered, strict=True))] = self.features_of(rows)[:, 0]
        return probabilities((f - f.T) / 2.0)


class ResponseModel(PreferenceModel):  # type: ignore[no-untyped-call]
    """Reads each response by itself and compares what it has noted: K passes for a K×K matrix."""

    def encode(self, pair: Pair) -> EncodedPair:
        """`x a` and `x b`."""
        return self.encoder.encode_pair(pair)

    def pair_logits(self, tokens: Tokens) -> Tensor:
        """`compare` of the two."""
        a, b = self.features(tokens).chunk(2)
        return self.compare(a, b)

    @abstractmethod
    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """`log p/(1 − p)` from the features `(…, F)` of two responses, broadcast: `(…,)`."""

    def cross(
        self, prompts: Sequence[Text], a: Sequence[Sequence[Text]], b: Sequence[Sequence[Text]]
    ) -> Tensor:
        """`Pr(a_i ≻ b_k | prompt)` of B prompts with K and K' responses, `(B, K, K')` float64, on the CPU.

        From one sequence for each response there is, K + K' or fewer for a prompt.
        """
        rows: list[Encoded] = []
        places: list[list[int]] = []
        for prompt, ours, theirs in zip(prompts, a, b, strict=True):
            both = {key_of(y): y for y in (*ours, *theirs)}
            known = {key: len(rows) + i for i, key in enumerate(both)}
            places.append([known[key_of(y)] for y in (*ours, *theirs)])
            rows += self.encoder.encode_group(prompt, list(both.values()))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        inverse = torch.empty(len(rows), dtype=torch.int64)
        inverse[order] = torch.arange(len(rows))
        features = self.features_of([rows[i] for i in order])[inverse][torch.tensor(places)]
        K = len(a[0])
        logits = self.compare(features[:, :K, None], features[:, None, K:])
        return torch.sigmoid(logits.double())

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K sequences."""
        features = self.features_of(self.encoder.encode_group(prompt, responses))
        logits = self.compare(features[:, None], features[None]).double().numpy()
        return probabilities((logits - logits.T) / 2.0)


class BradleyTerryModel(ResponseModel):  # type: ignore[no-untyped-call]
    """A scalar reward: `logit p(a ≻ b | x) = r(x, a) − r(x, b)`, as in RLHF.

    Always transitive: no setting of its weights says a ≻ b ≻ c ≻ a.
    """

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """`r_a − r_b`."""
        return a[..., 0] - b[..., 0]

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """r(x, y) for each of N pairs, `(N,)` float32; without gradients or dropout."""
        encoder = self.encoder
        rows = [encoder.encode(x, y) for x, y in zip(prompts, responses, strict=True)]
        return self.features_of(rows)[:, 0] if rows else torch.empty(0)


class GeneralPreferenceModel(ResponseModel):  # type: ignore[no-untyped-call]
    """Skew-symmetric embeddings: `logit p(a ≻ b | x) = Σ_l λ_l(x) (u_l(a) w_l(b) − w_l(a) u_l(b))`.

    Each response is a point `(u_l, w_l)` in each of `planes` planes, on a sphere of all of them together; a
    quarter turn in a plane wins most. One plane is enough for a cycle of any length, which no reward can
    express; K passes give the K×K matrix. The planes' weights λ_l ≥ 0 are learned, or with `prompt_scales`
    computed from the prompt's last hidden state.

    Source: arXiv:2410.02197 (GPM), eq. 4, whose eigenvalue scales these are.
    """

    def __init__(self, config: PreferenceConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.scale = nn.Parameter(torch.full((config.planes,), INITIAL_SCALE))
        if config.prompt_scales:
            self.prompt_scale = nn.Linear(self.backbone.config.hidden_size, config.planes, bias=False)
            nn.init.zeros_(self.prompt_scale.weight)

    @property
    def outputs(self) -> int:
        """Two numbers for each plane."""
        return 2 * int(self.config.planes)

    def features(self, tokens: Tokens) -> Tensor:
        """The embedding, and the log scales of the planes: `(B, 3·planes)`."""
        states = self._states(tokens)
        embedding = nn.functional.normalize(self.head(self._pooled(states, tokens)).float(), dim=-1)
        scale = self.scale.float().expand(len(embedding), -1)
        if self.config.prompt_scales:
            prompt_end = tokens.completion_mask.int().argmax(dim=1) - 1
            scale = scale + self.prompt_scale(at(states, prompt_end)).float()
        return torch.cat([embedding, scale], dim=-1)

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """The skew form. Both responses share a prompt; a bidirectional backbone may still see two scales in
        it, of which the mean keeps the form skew."""
        # Unit embeddings bound the logit by the largest λ, which must be able to grow quickly.
        u_a, w_a, scale_a = a.chunk(3, dim=-1)
        u_b, w_b, scale_b = b.chunk(3, dim=-1)
        scale = torch.exp((scale_a + scale_b) / 2.0)
        return (scale * (u_a * w_b - w_a * u_b)).sum(dim=-1)
