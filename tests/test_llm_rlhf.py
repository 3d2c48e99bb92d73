"""RLHF: each algorithm's expected gradient, where it ends if that is known, and runs that resume."""

import copy
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from nashpref.llm.algorithms import GRPO, PPO, REINFORCE, RLOO, DrGRPO, Experience, Kimi, ReMax
from nashpref.llm.encoding import Encoder, collate, encode_demonstrations
from nashpref.llm.environments import bradley_terry
from nashpref.llm.inputs import Lora
from nashpref.llm.losses.policy_gradient import AdaptiveKL
from nashpref.llm.objectives import Demonstrations
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.preferences import BradleyTerryModel
from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer

TOKENIZER = tiny_tokenizer(["a b c", "x y"])
PROMPTS = ["x", "y y x", "x y"]
ALGORITHMS = [
    REINFORCE(beta=0.1),
    RLOO(beta=0.1),
    ReMax(beta=0.1),
    GRPO(beta=0.1),
    DrGRPO(beta=0.1),
    PPO(beta=0.1),
    Kimi(beta=0.1, eta=2.0),
]


def name_of(algorithm):
    return type(algorithm).__name__


def spelling(prompts, responses):
    """A number that differs between most responses."""
    return [float(sum(map(ord, response)) % 7) for response in responses]


def lm(seed=0):
    return tiny_causal_lm(TOKENIZER, layers=1, width=16, context=32, seed=seed)


def adapted(seed=0):
    torch.manual_seed(seed)
    return Lora(rank=2).adapt(lm(seed))


def trainer(folder, algorithm, model=None, reward=spelling, prompts=PROMPTS, **options):
    keys = ("eval_dataset", "compute_metrics", "generate")
    others = {key: options.pop(key) for key in keys if key in options}
    options = {
        "rounds": 3,
        "samples": 3,
        "batch_size": 2,
        "max_new_tokens": 4,
        "learning_rate": 1e-2,
        "log_every": 1,
        **options,
    }
    config = RLHFConfig(output=str(folder), **options)
    return RLHFTrainer(model or lm(), algorithm, reward, config, prompts, TOKENIZER, **others)


# --- the expected gradient, by enumeration of all groups of two responses of two tokens ---

V, K, BETA = 3, 2, 0.3
FIRST, SECOND = torch.cartesian_prod(torch.arange(V), torch.arange(V)).T
GROUPS = torch.tensor(list(itertools.product(range(V * V), repeat=K)))
SOME = torch.randn(2 * (V + 1) + V, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REWARDS = SOME[-V:].flatten()
VALUES = SOME[:, 0]  # of the beginning and after each first token


def table(logits):
    """log π of each token of every sequence, `(9, 2)`."""
    log_p = torch.log_softmax(logits, dim=1)
    return torch.stack([log_p[0, FIRST], log_p[1 + FIRST, SECOND]], dim=1)


def expected_gradient(algorithm):
    """Of the loss, over all groups; and that of `E[r] − β KL`."""
    logits = SOME[: V + 1].clone().requires_grad_()
    mu = table(SOME[V + 1 : 2 * V + 2])
    logps, whole = table(logits), table(logits).sum(dim=1)
    p, rows = whole.detach().exp(), GROUPS.flatten()
    experience = Experience(
        rewards=REWARDS[GROUPS],
        old=logps.detach()[rows],
        reference=mu[rows],
        mask=torch.ones(len(rows), 2),
        beta=BETA,
        longest=4,
        average=0.7,
        greedy=REWARDS[p.argmax()].expand(len(GROUPS)),
        values=torch.stack([VALUES[0].expand(V * V), VALUES[1 + FIRST]], dim=1)[rows],
    )
    losses = algorithm.loss(logps[rows], experience).view(GROUPS.shape).mean(dim=1)
    (found,) = torch.autograd.grad(p[GROUPS].prod(dim=1) @ losses, logits, retain_graph=True)
    objective = whole.exp() @ (REWARDS - BETA * (whole - mu.sum(dim=1)))
    return found, torch.autograd.grad(objective, logits)[0]


@pytest.mark.parametrize(
    ("algorithm", "scale"),
    [
        (REINFORCE(beta=BETA), 1.0),
        (RLOO(beta=BETA), 1.0),
        (RLOO(beta=BETA, kl="k2"), 1.0),
        (REINFORCE(beta=BETA, kl="k2"), 1.0),
        (ReMax(beta=BETA), 1.0),
        (PPO(beta=BETA, lam=1.0), 1.0),
        (DrGRPO(beta=BETA, kl="reward"), (1 - 1 / K) / 4),
        (Kimi(beta=BETA, eta=0.7), 1 - 1 / K),
    ],
    ids=lambda value: f"{name_of(value)}-{value.kl}" if hasattr(value, "kl") else "",
)
def test_the_expected_gradient_is_that_of_the_objective(algorithm, scale):
    found, exact = expected_gradient(algorithm)
    torch.testing.assert_close(found, -scale * exact, rtol=0, atol=1e-12)
    assert exact.abs().max() > 0.05


@pytest.mark.parametrize(
    "algorithm",
    [RLOO(beta=BETA, kl="k3"), GRPO(beta=BETA, kl="reward"), DrGRPO(beta=BETA), PPO(beta=BETA, lam=0.5)],
    ids=lambda algorithm: f"{name_of(algorithm)}-{algorithm.kl}",
)
def test_what_is_biased_is_said_to_be(algorithm):
    found, exact = expected_gradient(algorithm)
    cosine = torch.nn.functional.cosine_similarity(-found.flatten(), exact.flatten(), dim=0)
    assert 0.5 < cosine < 0.999


def test_group_losses_by_hand():
    """Two responses of three tokens and of one; the second token of the first has moved beyond the clip."""
    ratio = torch.tensor([[1.0, 1.5, 1.1], [0.9, 1.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    d = torch.tensor([[0.1, -0.2, 0.3], [0.5, 0.0, 0.0]], dtype=torch.float64)  # log μ − log π
    logps = -torch.ones(2, 3, dtype=torch.float64) * mask
    experience = Experience(
        rewards=torch.tensor([[3.0, 1.0]], dtype=torch.float64),
        old=logps - ratio.log(),
        reference=logps + d,
        mask=mask,
        beta=0.5,
        longest=8,
    )
    k3 = 0.5 * (d.exp() - 1 - d) * mask
    kept = 1.0 + 1.2 + 1.1  # of the first response, whose advantage is positive
    std = 2.0**0.5
    expected = [(-kept / std + k3[0].sum()) / 3, 0.9 / std + k3[1].sum()]
    found = GRPO(beta=0.5, epsilon=1e-12).loss(logps, experience)
    torch.testing.assert_close(found, torch.stack(expected))
    expected = [(-kept + k3[0].sum()) / 8, (0.9 + k3[1].sum()) / 8]
    torch.testing.assert_close(DrGRPO(beta=0.5).loss(logps, experience), torch.stack(expected))


def test_baselines_by_hand():
    """Gradients are the same in the mean whatever they are, so that no expectation tells."""
    experience = Experience(
        rewards=torch.tensor([[3.0, 1.0], [0.0, 4.0]]),
        old=torch.zeros(4, 1),
        reference=torch.tensor([[-1.0], [0.0], [0.0], [0.0]]),
        mask=torch.ones(4, 1),
        beta=0.5,
        longest=1,
        average=2.0,
        greedy=torch.tensor([1.0, 3.0]),
    )
    found = ReMax(beta=0.5).advantages(experience)
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.0], [-3.0, 1.0]]))
    found = REINFORCE(beta=0.5).advantages(experience)
    torch.testing.assert_close(found, torch.tensor([[0.5, -1.0], [-2.0, 2.0]]))


# --- where training ends: two prompts, nine responses and what is none, all enumerated ---

TASK = bradley_terry(prompts=2, symbols=3, length=2, strength=1.0)


def log_odds(prompts, responses):
    """The task's reward, up to a constant; what is no response gets the least."""
    first = [TASK.responses[0]] * len(prompts)
    return torch.logit(TASK(prompts, responses, first).clamp(0.05, 0.95))


TABLE = np.stack([log_odds([x] * 10, [*TASK.responses, "c"]).numpy() for x in TASK.prompts])


@pytest.fixture(scope="module")
def demonstrated():
    """A model that mostly says valid things, and bad ones."""
    model = tiny_causal_lm(TASK.tokenizer, layers=1, width=16, context=16)
    encoder = Encoder(TASK.tokenizer)
    examples = encode_demonstrations(encoder, TASK.demonstrations(np.random.default_rng(0), 128))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        Demonstrations(model)(collate(examples, encoder.pad_id))["loss"].mean().backward()
        optimizer.step()
    return model


def trained(model, algorithm, folder, **options):
    """Policies before and after, `(2, 10)`."""
    model = copy.deepcopy(model)
    before = TASK.policy(model)
    options = {"samples": 32, "learning_rate": 3e-3, **options}
    config = RLHFConfig(
        output=str(folder), batch_size=2, max_new_tokens=TASK.max_new_tokens, log_every=100, **options
    )
    RLHFTrainer(model, algorithm, log_odds, config, list(TASK.prompts), TASK.tokenizer).train(progress=False)
    return before, TASK.policy(model)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=name_of)
def test_every_algorithm_raises_the_exact_reward(algorithm, demonstrated, tmp_path):
    before, after = trained(demonstrated, algorithm, tmp_path, rounds=25, reuse=2)
    start, end = ((policy * TABLE).sum(axis=1).mean() for policy in (before, after))
    assert start < -0.85
    assert end > start + 0.5


def test_the_fixed_point_is_the_tilted_reference(demonstrated, tmp_path):
    """`π ∝ μ e^{r/β}`."""
    mu, found = trained(demonstrated, RLOO(beta=1.0), tmp_path, rounds=120, samples=64, learning_rate=1e-2)
    tilted = mu * np.exp(TABLE)
    tilted /= tilted.sum(axis=1, keepdims=True)
    start, end = (np.sum(policy * np.log(policy / tilted), axis=1).mean() for policy in (mu, found))
    assert start > 0.1
    assert end < 3e-3


# --- runs ---


@pytest.mark.parametrize("make", [lm, adapted], ids=["all weights", "lora"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=name_of)
def test_the_first_step_is_on_policy(algorithm, make, tmp_path):
    run = trainer(tmp_path, algorithm, make(), rounds=1, reuse=2, eval_dataset=PROMPTS)
    first, second, evaluation = run.train(progress=False)
    assert first["kl"] == second["kl"] == 0.0  # of the policy that drew, which is the reference
    assert first["reward"] == second["reward"] > 0.0
    assert first["loss"] != second["loss"]
    assert math.isfinite(second["loss"])
    assert second["round"] == 1.0
    (file,) = (tmp_path / "responses").glob("*.jsonl")
    kept = [json.loads(line)["responses"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert evaluation["eval/reward"] == pytest.approx(np.mean([spelling(None, each) for each in kept]))
    assert 0.0 < evaluation["eval/win_rate/reference"] < 1.0


@pytest.mark.parametrize("make", [lm, adapted], ids=["all weights", "lora"])
@pytest.mark.parametrize(
    "algorithm",
    [REINFORCE(beta=0.1), ReMax(beta=0.1), PPO(beta=0.1), RLOO(beta=AdaptiveKL(start=0.1, target=0.01))],
    ids=name_of,
)
@pytest.mark.parametrize(("stop", "reuse"), [(2, 1), (4, 3)])
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(stop, reuse, algorithm, make, tmp_path, cut_off):
    options = {"rounds": 6 // reuse, "reuse": reuse, "save_every": 1}
    whole = trainer(tmp_path / "whole", algorithm, make(), **options)
    expected = whole.train(progress=False)
    cut_off(trainer(tmp_path / "cut", algorithm, make(), **options), stop)
    again = trainer(tmp_path / "cut", algorithm, make(seed=0), **options)
    found = again.train(progress=False)
    assert whole.objective.taken == again.objective.taken == whole.steps == 6
    for a, b in zip(whole.objective.parameters(), again.objective.parameters(), strict=True):
        assert torch.equal(a, b)

    def without_time(log):
        return [{key: value for key, value in record.items() if key != "seconds"} for record in log]

    assert without_time(found) == without_time(expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=name_of)
def test_small_pieces_make_the_same_step(algorithm, tmp_path):
    whole = trainer(tmp_path / "1", algorithm, reuse=2, batch_size=3)
    pieces = trainer(tmp_path / "2", algorithm, reuse=2, batch_size=3, micro_batch_size=1)
    logs = [run.train(progress=False) for run in (whole, pieces)]
    for a, b in zip(*logs, strict=True):
        np.testing.assert_allclose([a["loss"], a["reward"]], [b["loss"], b["reward"]], rtol=0, atol=1e-5)
    for a, b in zip(whole.objective.parameters(), pieces.objective.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_the_likeliest_response_is_the_baseline(tmp_path):
    objective = trainer(tmp_path, ReMax(beta=0.0)).objective
    with torch.no_grad():
        objective.network.get_output_embeddings().weight[TOKENIZER.convert_tokens_to_ids("a")] *= 30.0
    ids = torch.tensor([TOKENIZER("x")["input_ids"]])
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat([ids, objective.network(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
        if ids[0, -1] == TOKENIZER.eos_token_id:
            break
    (expected,) = spelling(["x"], [TOKENIZER.decode(ids[0, 1:])])
    drawn = objective._responses(trainer(tmp_path, ReMax(beta=0.0)).prompts[:1])
    assert drawn.greedy.tolist() == [expected]


def test_the_moving_average_is_of_earlier_batches(tmp_path):
    run = trainer(tmp_path, REINFORCE(beta=0.0), rounds=3, batch_size=3)
    seen = []
    loss = REINFORCE.loss

    class Watched(REINFORCE):
        def loss(self, logps, experience):
            seen.append(experience.average)
            return loss(self, logps, experience)

    run.objective.algorithm = Watched(beta=0.0)
    rewards = [record["reward"] for record in run.train(progress=False)]
    assert seen[0] is None
    np.testing.assert_allclose(seen[1:], [rewards[0], (0.9 * rewards[0] + rewards[1]) / 1.9], rtol=1e-6)


def test_the_weight_of_the_kl_adapts(tmp_path):
    algorithm = RLOO(beta=AdaptiveKL(start=0.1, target=0.01))
    log = trainer(tmp_path, algorithm, rounds=6, samples=32, learning_rate=5e-2).train(progress=False)
    betas = [0.1, *(record["beta"] for record in log)]
    for record, before, after in zip(log, betas, betas[1:], strict=False):
        np.testing.assert_allclose(after, algorithm.beta(before, record["kl"]))
    assert betas[-1] > 0.1  # the policy has moved away by more than the target
    described = json.loads((tmp_path / "config.json").read_text())["algorithm"]
    assert described["beta"] == {"start": 0.1, "target": 0.01, "rate": 0.1}


def test_the_value_learns_the_reward(tmp_path):
    """Of a response that goes on: nearly the constant that every response is worth."""
    run = trainer(
        tmp_path,
        PPO(beta=0.0, clip_value=10.0, value_weight=1.0),
        reward=lambda prompts, responses: [2.0] * len(prompts),
        rounds=50,
    )
    log = run.train(progress=False)
    assert log[0]["value_loss"] == pytest.approx(2.0, rel=0.2)  # ½(0 − 2)²
    assert log[-1]["value_loss"] < 0.05
    tokens = run.space.draw(None, run.prompts, 0, 0).responses.tokens
    values = run.objective._read(tokens)[1][tokens.completion_mask.bool()]
    assert (values - 2.0).abs().mean() < 0.3


def test_a_learned_reward_and_one_that_is_checked(tmp_path):
    model = BradleyTerryModel.from_backbone(lm(1), TOKENIZER)
    run = trainer(tmp_path / "1", RLOO(beta=0.1), reward=model, rounds=1)
    (record,) = run.train(progress=False)
    texts = run.objective.space.draw(None, run.prompts, 0, 0).responses.texts
    assert model.rewards(["x"] * 3, texts[0]).shape == (3,)
    assert math.isfinite(record["reward"])
    assert record["reward"] != 0.0
    run = trainer(tmp_path / "2", RLOO(beta=0.0), reward=lambda x, y: ["a" in text for text in y], rounds=1)
    (record,) = run.train(progress=False)
    assert 0.0 <= record["reward"] <= 1.0


def test_chats(tmp_path):
    asked = []

    def reward(prompts, responses):
        asked.extend(prompts)
        return spelling(prompts, responses)

    chats = [[{"role": "user", "content": content}] for content in PROMPTS]
    run = trainer(tmp_path, RLOO(beta=0.1), prompts=chats, reward=reward, reuse=2, batch_size=3)
    assert math.isfinite(run.train(progress=False)[-1]["loss"])
    assert all(prompt[0]["role"] == "user" for prompt in asked)
    assert len(asked) == 3 * 3 * 3  # rounds, prompts, responses: not asked again for the second step


def test_what_is_saved_is_the_trained_policy(tmp_path):
    from transformers import AutoModelForCausalLM

    run = trainer(tmp_path / "run", PPO(beta=0.1), adapted())
    run.train(progress=False)
    run.save_model(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, run.model(ids).logits)


def test_another_algorithm_does_not_go_on(tmp_path):
    trainer(tmp_path, GRPO(beta=0.1), save_every=1).train(progress=False)
    for algorithm in (DrGRPO(beta=0.1), dataclasses.replace(GRPO(beta=0.1), clip=0.3)):
        with pytest.raises(ValueError, match=r"algorithm\.(name|clip)"):
            trainer(tmp_path, algorithm, save_every=1).train(progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RLOO(beta=-0.1), r"beta = -0\.1"),
        (lambda: RLOO(beta=math.nan), "beta = nan"),
        (lambda: RLOO(beta=0.1, kl="k1"), "the gradient of k1 in the loss has mean zero"),
        (lambda: RLOO(beta=0.1, kl="k4"), "'k4'; choose"),
        (lambda: GRPO(beta=0.1, clip=0.0), "clip = 0"),
        (lambda: GRPO(beta=0.1, epsilon=0.0), "epsilon = 0"),
        (lambda: PPO(beta=0.1, lam=1.1), r"lam = 1\.1"),
        (lambda: PPO(beta=0.1, gamma=-0.1), r"gamma = -0\.1"),
        (lambda: PPO(beta=0.1, value_weight=0.0), "value_weight = 0"),
        (lambda: Kimi(beta=0.1, eta=0.0), "eta = 0"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mistakes(tmp_path):
    rloo = RLOO(beta=0.1)
    for options, message in (
        ({"rounds": 0}, "rounds = 0"),
        ({"reuse": 0}, "reuse = 0"),
        ({"max_steps": 3}, "max_steps = 3"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, rloo, **options)
    with pytest.raises(ValueError, match="ReMax asks for the policy's likeliest response"):
        trainer(tmp_path, ReMax(beta=0.1), generate=lambda model, prompts, count: [["a"] * count])
    assert not any(tmp_path.iterdir())
    for reward, message in (
        (lambda x, y: [math.nan] * len(y), r"the reward gave nan for sample 0 \("),
        (lambda x, y: [0.0] * (len(y) - 1) + [math.inf], r"the reward gave inf for sample 5 \("),
        (lambda x, y: [1.0], "the reward gave 1 values for 6 samples"),
        (lambda x, y: 1.0, "6 numbers are needed"),
        (lambda x, y: ["good"] * len(y), "the reward gave 'good' for sample 0"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(ValueError, match=message):
            trainer(folder, rloo, reward=reward).train(progress=False)


def test_nothing_is_lost_when_a_reward_fails(tmp_path):
    """The run goes on from its last checkpoint once the reward is mended."""
    calls = []

    def failing(prompts, responses):
        calls.append(1)
        return [math.nan if len(calls) == 4 else value for value in spelling(prompts, responses)]

    options = {"rounds": 6, "save_every": 1}
    expected = trainer(tmp_path / "whole", RLOO(beta=0.1), **options).train(progress=False)
    with pytest.raises(ValueError, match="the reward gave nan"):
        trainer(tmp_path / "run", RLOO(beta=0.1), reward=failing, **options).train(progress=False)
    found = trainer(tmp_path / "run", RLOO(beta=0.1), reward=failing, **options).train(progress=False)
    assert [record["loss"] for record in found] == [record["loss"] for record in expected]
