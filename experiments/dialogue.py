"""What is said at every turn of a small dialogue: multi-turn RLHF on a reward model, and Nash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.bradley_terry import fit_bradley_terry
from nashpref.closed_forms import multi_turn_rlhf
from nashpref.experiments.common import Experiment, Table, stack
from nashpref.policies import FloatArray


@dataclass(frozen=True)
class Settings:
    """The weight of the KL to the uniform reference."""

    beta: float = 0.05


def run(settings: Settings) -> Mapping[str, Table]:
    """`turns`: for each policy and each answer that can be given in the dialogue, what the user `said`
    before, the `probability` of the answer there, and the `occupancy`, that it comes to this and is given.
    `node` and `child` number the states of a turn and of the next. `summary`: the exploitability
    (half the duality gap in the original game) of each policy.

    "RLHF" maximises the Bradley–Terry reward of complete dialogues, every pair compared equally often.
    """
    game, beta = npf.zoo.dialogue(), settings.beta
    # Of skew payoffs `P − 1/2` of the final states, all of which can be reached.
    reward = fit_bradley_terry(game.payoffs[0] + 0.5).scores
    policies = {"RLHF": multi_turn_rlhf(game, reward, beta), "Nash": npf.equilibrium(game, beta).policy}
    summary = {
        "policy": np.array(list(policies)),
        "exploitability": np.array([npf.duality_gap(game, policy) / 2.0 for policy in policies.values()]),
    }
    return {"turns": stack([_turns(game, *item) for item in policies.items()]), "summary": summary}


def _turns(game: npf.MarkovGame, name: str, policy: FloatArray) -> Table:
    assert game.state_labels is not None
    assert game.action_labels is not None
    plan, parts = npf.occupancy(game, policy), []
    for h, states in enumerate(game.reached[: game.horizon]):
        said = np.array([game.state_labels[h][s][-1] for s in states])
        # The dynamics are deterministic: the number expected is the number of the one that follows.
        child = game.backward(h, np.arange(len(game.reached[h + 1]), dtype=np.float64)[None])
        columns = {
            "policy": np.full(len(states), name),
            "turn": np.full(len(states), h + 1),
            "node": np.arange(len(states)),
            "said": said,
        }
        parts.append(
            {key: np.repeat(column, game.actions) for key, column in columns.items()}
            | {
                "answer": np.tile(game.action_labels, len(states)),
                "child": child.astype(np.int64).ravel(),
                "probability": policy[h, states].ravel(),
                "occupancy": plan[h, states].ravel(),
            }
        )
    return stack(parts)


EXPERIMENT = Experiment(
    "a dialogue of two turns: what multi-turn RLHF and what Nash answers at each",
    {"quick": Settings(), "default": Settings(), "full": Settings()},
    run,
)
