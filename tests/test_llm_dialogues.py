"""Dialogues: environments, exact tasks, what a turn is worth, and training on many turns."""

import copy
import dataclasses
import itertools
import tempfile
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref.dynamic_programming import action_values
from nashpref.llm.batching import LengthBuckets
from nashpref.llm.completions import CompletionSpace
from nashpref.llm.dialogue_tasks import control, cycle, cycles_at_every_turn
from nashpref.llm.dialogues import ModelUser, Recorded, Scripted, User, opening, replies
from nashpref.llm.encoding import Encoder, Tokens, collate, encode_demonstrations
from nashpref.llm.interpreter import MirrorObjective
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.objectives import Demonstrations
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.policies import Blend
from nashpref.llm.sampling import Mixture, Network, mixture_logps
from nashpref.llm.training import TrainConfig, fit
from nashpref.llm.turns import DialogueSpace
from nashpref.mirror import Geometry

TASK = cycle(1, 3, 3, 1, seed=2)  # three words, three turns


def said(*texts):
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def generators(count, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(count)]


@pytest.fixture(scope="module")
def model():
    """A model that knows the task's words, though not well."""
    torch.manual_seed(0)
    model = tiny_causal_lm(TASK.tokenizer, kind="gpt2", layers=1, width=32, context=48)
    encoder = Encoder(TASK.tokenizer)
    rows = encode_demonstrations(encoder, TASK.demonstrations(np.random.default_rng(0), 128))
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(output=folder, max_steps=60, batch_size=64, learning_rate=3e-3)
        batches = LengthBuckets([len(row) for row in rows], 64)
        fit(Demonstrations(model), rows, batches, partial(collate, pad_id=encoder.pad_id), config)
    return model


def space(model, geometry=Geometry.PER_STATE, beta=0.0, task=TASK, samples=4, **options):
    completions = CompletionSpace(
        model, Encoder(task.tokenizer), task, samples=samples, max_new_tokens=task.max_new_tokens
    )
    return DialogueSpace(completions, task, geometry, beta, every_turn=task.every_turn, **options)


# --- environments ---


def test_a_script_is_said_line_by_line_and_then_the_dialogue_is_over():
    user = Scripted(("why?", "and then?"))
    assert user.turns == 3
    dialogues = [
        said("hi", "a"),
        said("hi", "a", "why?", "b"),
        said("hi", "a", "why?", "b", "and then?", "c"),
    ]
    assert replies(user, ["hi"] * 3, dialogues, generators(3)) == ["why?", "and then?", None]


def test_a_user_says_things_as_often_as_their_probability_is():
    user = User(lambda dialogue: {"yes": 0.5, "no": 0.2, None: 0.3}, turns=2)
    found = replies(user, ["hi"] * 4000, [said("hi", "a")] * 4000, generators(4000))
    for words, p in (("yes", 0.5), ("no", 0.2), (None, 0.3)):
        assert abs(found.count(words) / 4000 - p) < 4.5 * (p * (1 - p) / 4000) ** 0.5
    broken = User(lambda dialogue: {"yes": 0.5}, turns=2)
    with pytest.raises(ValueError, match=r"probabilities \[0.5\]: of sum 1"):
        replies(broken, ["hi"], [said("hi", "a")], generators(1))


def test_recorded_dialogues_of_hh_rlhf_are_said_again():
    text = "\n\nHuman: Hello there.\n\nAssistant: Hi.\n\nHuman: And now?\n\nAssistant: Now\n\nwhat?"
    messages = opening(text)
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert [m["content"] for m in messages] == ["Hello there.", "Hi.", "And now?", "Now\n\nwhat?"]
    user = Recorded(turns=4)
    first = user.reset(text)
    assert first == said("Hello there.")
    second = [*first, {"role": "assistant", "content": "anything"}]
    assert user.respond([text], [second], generators(1)) == ["And now?"]
    third = [*second, *said("And now?", "else")]
    assert user.respond([messages], [third], generators(1)) == [None]
    with pytest.raises(ValueError, match="has no message of the user"):
        opening("\n\nAssistant: Hi.")


def test_a_model_as_the_user_sees_the_roles_exchanged_and_ends_the_dialogue():
    tokenizer = tiny_tokenizer(["speak as a user", "hi yes no bye"])
    model = tiny_causal_lm(tokenizer, layers=1, width=16)
    user = ModelUser(model, tokenizer, 3, "speak as a user", over="bye", max_new_tokens=3)
    view = user._seen(said("hi", "yes", "no"))
    assert [m["content"] for m in view] == ["speak as a user", "hi", "yes", "no"]
    assert [m["role"] for m in view] == ["user", "assistant", "user", "assistant"]
    dialogues = [said("hi", "yes")] * 40
    found = user.respond(["hi"] * 40, dialogues, generators(40))
    assert found == user.respond(["hi"] * 40, dialogues, generators(40))
    assert len(set(found)) > 5
    assert None in found
    assert not any("bye" in each for each in found if each is not None)


class Broken:
    turns = 2

    def __init__(self, answer):
        self.answer = answer

    def reset(self, prompt):
        return said(prompt)

    def respond(self, prompts, dialogues, generators):
        return self.answer(dialogues)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda d: [""] * len(d), r"reply to sample 0 \(\"a\"\) is '': a text is needed, or None"),
        (lambda d: [7] * len(d), r"reply to sample 0 \(\"a\"\) is 7"),
        (lambda d: ["x"] * (len(d) + 1), "gave 3 replies to 2 dialogues"),
    ],
    ids=["empty", "no text", "another number"],
)
def test_what_is_wrong_with_an_environment_is_said(answer, message):
    with pytest.raises(ValueError, match=message):
        replies(Broken(answer), ["hi"] * 2, [said("hi", "a")] * 2, generators(2))


def test_what_an_environment_raises_says_where():
    def fail(dialogues):
        raise KeyError("nobody")

    with pytest.raises(KeyError) as caught:
        replies(Broken(fail), ["hi"], [said("hi", "a")], generators(1))
    assert caught.value.__notes__ == ["raised by the environment, answering 1 dialogues"]


# --- exact tasks ---


@pytest.mark.parametrize("make", [cycle, cycles_at_every_turn, control])
def test_the_game_is_that_of_the_environment_and_the_preference(make):
    """Payoffs of policies in the game against those of dialogues played out in full."""
    task = make(2, 2, 3, 1, seed=1)
    rng = np.random.default_rng(0)
    n, H = 3, 2
    for k, game in enumerate(task.games):
        tables = [rng.dirichlet(np.ones(n + 1), game.policy_shape[:-1]) for _ in range(2)]
        played = [list(all_dialogues(task, k, table)) for table in tables]
        ends = [[end for end, _ in each] for each in played]
        weights = [np.array([p for _, p in each]) for each in played]
        assert weights[0].sum() == pytest.approx(1.0, abs=1e-12)
        value = 0.0
        for h in range(1, H + 1) if task.every_turn else [H]:
            cut = [[end[: 2 * h - 1] for end in each] for each in ends]
            rates = task.cross([task.prompts[k]], [cut[0]], [cut[1]])[0].numpy() - 0.5
            value += weights[0] @ rates @ weights[1]
        plans = [game.plan(game.flat(table)) for table in tables]
        if task.every_turn:
            exact = (plans[0] * game.payoff(plans[1])).sum()
        else:
            final = action_values(
                game, game.flat(tables[0]), game.payoff(plans[1]), np.zeros(game.flat_shape[:2])
            )
            exact = (game.flat(tables[0])[:, 0] * final[:, 0]).sum()
        assert exact == pytest.approx(value, abs=1e-12)
        assert abs(value) > 1e-3


def all_dialogues(task, k, table):
    """Every dialogue after its opening, with its probability."""
    words, n = task.words, len(task.words)

    def go_on(h, state, end, p):
        for a in range(n + 1):
            now = [*end, {"role": "assistant", "content": words[a] if a < n else "a a a a"}]
            q = p * table[h, state, a]
            if a == n or h + 1 == task.turns:
                yield now, q
                continue
            for r, line in enumerate(task.lines):
                after = [*now, {"role": "user", "content": line}]
                yield from go_on(
                    h + 1, (state * n + a) * len(task.lines) + r, after, q * task.user[k, h, a, r]
                )

    yield from go_on(0, 0, [], 1.0)


def test_a_models_policy_and_its_leak(model):
    (table,) = TASK.policy(model)
    assert table.sum(axis=-1) == pytest.approx(np.ones(table.shape[:-1]), abs=1e-12)
    assert 0.001 < table[0, 0, -1] < 0.9
    ends = list(all_dialogues(TASK, 0, table))
    over = sum(p for end, p in ends if end[-1]["content"] == "a a a a")
    assert TASK.leak([table]) == pytest.approx(over, abs=1e-12)
    measured = TASK.metrics(0.1, model)(model)
    assert measured["gap"] == pytest.approx(TASK.gap([table], 0.1, [table]).mean(), abs=1e-12)
    assert measured["gap/unregularised"] > measured["gap"] > 0.01


def test_an_average_is_one_of_its_policies_played_throughout(model):
    (table,) = TASK.policy(model)
    other = np.random.default_rng(0).dirichlet(np.ones(4), table.shape[:-1])
    (mean,) = TASK.average([[table], [other]])
    (game,) = TASK.games
    plans = [game.plan(game.flat(each)) for each in (table, other, mean)]
    np.testing.assert_allclose(plans[2], (plans[0] + plans[1]) / 2, atol=1e-14)


def test_demonstrations_mask_what_the_user_says():
    encoder = Encoder(TASK.tokenizer)
    (shown,) = TASK.demonstrations(np.random.default_rng(0), 1)
    encoded = encoder.encode(shown.prompt, shown.completion)
    tokens = collate([encoded, encoder.encode(shown.prompt, shown.completion)], encoder.pad_id)
    own = tokens.input_ids[0][tokens.completion_mask[0]]
    words = [m["content"] for m in shown.completion if m["role"] == "assistant"]
    assert TASK.tokenizer.decode(own).replace("<eos>", "").split() == words


def test_comparing_at_the_end_only_leaves_earlier_turns_as_they_were():
    """The gap of the whole is the sum of the turns'; who trains on the last alone keeps the first's."""
    task = cycles_at_every_turn(1, 2, 3, 1)
    (game,), (last,) = task.games, dataclasses.replace(task, every_turn=False).games
    valid = np.array([0.6, 0.3, 0.1 - 1e-9, 1e-9])  # what is no word ends the dialogue, and so matters there
    mu, final = np.empty(game.policy_shape), np.empty(last.policy_shape)
    mu[...], final[...] = valid, valid
    final[:, :4] = mu[:, :4]
    trained = npf.solve(last, npf.MTPO(beta=0.05, eta=2.0), 300, reference=final).policy
    np.testing.assert_allclose(trained[0, 0], mu[0, 0], atol=1e-7)
    both = mu.copy()
    both[:, :4] = trained[:, :4]
    assert npf.duality_gap(game, both, beta=0.05, reference=mu) > 0.05
    learned = npf.solve(game, npf.MTPO(beta=0.05, eta=1.0), 600, reference=mu)
    assert learned.gap[-1] < 1e-3 * npf.duality_gap(game, both, beta=0.05, reference=mu)


# --- what a turn is worth ---


def exact_values(objective, step):
    """`Q` of the step at every place, by the core's dynamic programs, `(N, n + 1)`."""
    (game,) = TASK.games
    sp = objective.space

    def table(name):
        return game.flat(policy_table(sp, objective.policy(name)))

    payoff = {name: game.payoff(game.plan(table(name))) for name in step.payoffs}
    if sp.geometry is Geometry.PER_STATE:
        total = 0.0
        for name, g in step.payoffs.items():
            cost = -sp.beta * expected_ratio(objective, name, {"reference": 1.0})
            total = total + g * action_values(game, table(name), payoff[name], cost)
        return total[0]
    now, ratio = table("current"), expected_ratio(objective, "current", step.anchors)
    gain = sum(g * payoff[name] for name, g in step.payoffs.items())
    return action_values(game, now, gain, -ratio)[0]


def expected_ratio(objective, name, anchors):
    """`E_π[Σ_k w_k log π_k − log π]` at every place, over all that can be said: pairs of tokens, `(1, N)`."""
    sp, V = objective.space, len(TASK.tokenizer)
    encoder = Encoder(TASK.tokenizer)

    def both(policy, ids):
        """Log-probabilities of a first token and of a second."""
        first = next_token(sp, policy, torch.tensor([ids]))[0]
        return first, next_token(sp, policy, torch.tensor([[*ids, t] for t in range(V)]))

    values = []
    for h in range(TASK.turns):
        for past in TASK._pasts(h):
            ids = list(encoder.encode_prompt(TASK.dialogue(0, past)).ids)
            first, second = both(objective.policy(name), ids)
            others = [(w, both(objective.policy(k), ids)) for k, w in anchors.items()]
            goes_on = first.exp()
            goes_on[encoder.end_id] = 0.0
            at_first = sum(w * each[0] for w, each in others) - first
            at_second = sum(w * each[1] for w, each in others) - second
            value = first.exp() @ at_first + goes_on @ (second.exp() * at_second).sum(dim=1)
            values.append(float(value))
        if h:
            values.append(0.0)  # it is over
    return np.array([values])


def next_token(sp, policy, ids):
    """Log-probabilities of the token after these, in float64; of a mixture token by token."""
    parts = policy.parts if isinstance(policy, Blend) else ((policy, 1.0),)
    total = 0.0
    for part, weight in parts:
        with torch.no_grad(), sp.store.loaded(part):
            total = total + weight * sp.store.model(ids).logits[:, -1].double().log_softmax(dim=1)
    return total.log_softmax(dim=1)


def policy_table(sp, policy):
    """Of weights by the task; of a token-by-token mixture by reading every word at every state."""
    if not isinstance(policy, Blend):
        with sp.store.loaded(policy):
            return TASK.policy(sp.store.model)[0]
    networks = [Network(sp.store.model, partial(sp.store.loaded, part)) for part, _ in policy.parts]
    mixture = Mixture(networks, [weight for _, weight in policy.parts])
    encoder, words = Encoder(TASK.tokenizer), list(TASK.words)
    table = np.full(TASK.games[0].policy_shape, 0.25)
    for h in range(TASK.turns):
        for s, past in enumerate(TASK._pasts(h)):
            rows = encoder.encode_group(TASK.dialogue(0, past), words)
            logps, _ = mixture_logps(mixture, collate(rows, encoder.pad_id))
            table[h, s, :-1] = logps.double().exp().numpy()
            table[h, s, -1] = 1.0 - table[h, s, :-1].sum()
    return table


@pytest.mark.parametrize(
    "rule",
    [
        npf.MTPO(beta=0.3, eta=1.0),
        npf.MTPOTau(beta=0.3, eta=1.0),
        npf.MPO(eta=1.0),
        npf.OMPO(eta=1.0),
        npf.OMPO(beta=0.3, eta=1.0),
    ],
    ids=["mtpo", "mtpo-tau", "mpo", "ompo", "ompo, regularised"],
)
def test_what_a_turn_is_worth_has_no_bias(model, rule):
    """Means over many draws, at each state and word, are the exact action values, up to a constant."""
    model = copy.deepcopy(model)
    sp = space(model, rule.geometry, getattr(rule, "beta", 0.0), samples=8, lines=4)
    objective = MirrorObjective(sp, rule)
    with torch.no_grad():  # current, previous and reference are to differ
        for shift in (1.0, -0.7):
            for parameter in model.parameters():
                parameter += (
                    0.03 * shift * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
                )
            objective.policies["current" if shift > 0 else "previous"] = sp.store.take()
    if isinstance(rule, npf.MTPOTau):
        parts = ((objective.policy("current"), 0.7), (objective.policy("reference"), 0.3))
        objective.policies["mixture"] = Blend(parts)
    step = next(each for each in rule.steps(0) if each.payoffs)
    exact = exact_values(objective, step)
    words, starts = list(TASK.words), [0, 1, 7]
    prompts = [sp.open(0, TASK.prompts[0])]
    found: dict[tuple[int, int], list[float]] = {}
    with torch.no_grad():
        for at in range(60):
            means: dict[tuple[int, int], list[float]] = {}  # within one draw they are not independent
            draws = sp.draw(objective.policy("reference"), prompts, at, 0)
            gain = sp.gain(step, draws, objective.policy, at, systematic=True).double()
            for turn, texts, row in zip(draws.prompts, draws.responses.texts, gain, strict=True):
                past = [m["content"] for m in turn.prompt[1:]]
                s = TASK.state([(TASK.lines if t % 2 else words).index(text) for t, text in enumerate(past)])
                for text, value in zip(texts, row.tolist(), strict=True):
                    a = words.index(text.strip()) if text.strip() in words else 3
                    means.setdefault((starts[turn.turn - 1] + s, a), []).append(value)
            for key, values in means.items():
                found.setdefault(key, []).append(float(np.mean(values)))
    seen = 0
    for (place, a), values in found.items():
        if len(values) >= 20:
            error = np.std(values) / len(values) ** 0.5 + 2e-3
            assert abs(np.mean(values) - exact[place, a]) < 4 * error, (place, a)
            seen += 1
    assert seen >= 8


def test_the_rows_of_a_turn_are_what_the_policy_says_itself(model):
    sp = space(model, lines=3)
    prompts = [sp.open(0, TASK.prompts[0]), sp.open(1, TASK.prompts[0])]
    draws = sp.draw(sp.store.base, prompts, 0, 0)
    tokens = draws.responses.tokens
    texts = [text for each in draws.responses.texts for text in each]
    for ids, mask, text in zip(tokens.input_ids, tokens.completion_mask, texts, strict=True):
        assert TASK.tokenizer.decode(ids[mask]).replace("<eos>", "").split() == text.split()
    torch.testing.assert_close(sp.logps(sp.store.base, draws), draws.logps, rtol=0, atol=1e-5)
    assert draws.shares.sum() <= 2 * 3 + 1e-6
    turns = [turn.turn for turn in draws.prompts]
    assert turns.count(1) == 2
    assert max(turns.count(2), turns.count(3)) <= 6
    # What a prompt's rows are does not depend on the batch.
    alone = sp.draw(sp.store.base, prompts[1:], 0, 0)
    own = [row for row, owner in enumerate(draws.owners.tolist()) if owner == 1]
    assert [draws.responses.texts[row] for row in own] == alone.responses.texts


def test_no_gradient_comes_from_what_the_user_says(model):
    """The loss of a turn does not ask for the probability of anything but the policy's own words."""
    sp = space(model, lines=4)
    draws = sp.draw(sp.store.base, [sp.open(0, TASK.prompts[0])], 0, 0)
    row = max(range(len(draws.prompts)), key=lambda i: draws.prompts[i].turn)
    assert draws.prompts[row].turn > 1
    start = 4 * row
    tokens = Tokens(*(each[start : start + 4] for each in draws.responses.tokens))
    head = model.get_output_embeddings()
    asked = []
    hook = head.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    sp.completions.shares_prompts = False
    sp.completions._scored(tokens, 4)
    hook.remove()
    assert sum(asked) == int(tokens.completion_mask.sum())
    others = tokens.attention_mask.bool() & ~tokens.completion_mask
    assert int(others.sum()) > int(tokens.completion_mask.sum())


def test_what_the_network_expects_the_user_to_say_is_of_no_account(model):
    """States that predict the user's tokens may be anything: the gradient of the rest is the same."""
    encoder = Encoder(TASK.tokenizer)
    shown = TASK.demonstrations(np.random.default_rng(0), 4)
    tokens = collate([encoder.encode(d.prompt, d.completion) for d in shown], encoder.pad_id)
    own = torch.cat([tokens.completion_mask[:, 1:], torch.zeros(4, 1, dtype=torch.bool)], dim=1)
    assert (tokens.completion_mask.diff(dim=1).sum() != 0).any()  # the mask has holes

    def perturbed(module, inputs, output):
        noise = 10.0 * torch.randn(output[0].shape, generator=torch.Generator().manual_seed(0))
        output.last_hidden_state = torch.where(own[:, :, None], output[0], output[0] + noise)
        return output

    objective = Demonstrations(model)
    expected = gradients(objective, tokens)
    hook = model.transformer.register_forward_hook(perturbed)
    found = gradients(objective, tokens)
    hook.remove()
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert max(float(each.abs().max()) for each in expected) > 1e-3


def gradients(objective, tokens):
    objective.zero_grad()
    objective(tokens)["loss"].sum().backward()
    return [p.grad.clone() for p in objective.parameters()]


# --- training ---


def trainer(model, folder, rule=None, task=TASK, **options):
    args = NashConfig(
        **{
            "output": str(folder),
            "rounds": 3,
            "updates": 4,
            "reuse": 2,
            "samples": 8,
            "lines": 2,
            "batch_size": 1,
            "max_new_tokens": task.max_new_tokens,
            "learning_rate": 3e-3,
            "save_every": 1,
            "log_every": 1,
            "every_turn": task.every_turn,
        }
        | options
    )
    torch.manual_seed(0)
    fresh = tiny_causal_lm(task.tokenizer, kind="gpt2", layers=1, width=32, context=48)
    fresh.load_state_dict(model.state_dict())
    rule = rule or npf.OMPO(eta=1.0)
    return NashTrainer(
        fresh,
        rule,
        task,
        args,
        list(task.prompts),
        task.tokenizer,
        environment=task,
        eval_dataset=[TASK.prompts[0]],
    )


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(model, tmp_path):
    whole = trainer(model, tmp_path / "whole", eval_every=4)
    log = whole.train(progress=False)
    assert any("eval/win_rate/reference" in record for record in log)
    cut = trainer(model, tmp_path / "cut", eval_every=4)
    respond, calls = cut.space.environment.respond, 0

    class Failing:
        turns = TASK.turns
        reset = staticmethod(TASK.reset)

        @staticmethod
        def respond(*arguments):
            nonlocal calls
            calls += 1
            if calls == 30:
                raise RuntimeError("the user has gone")
            return respond(*arguments)

    cut.space.environment = Failing()
    with pytest.raises(RuntimeError, match="the user has gone"):
        cut.train(progress=False)
    assert 0 < cut.objective.taken < whole.objective.taken
    again = trainer(model, tmp_path / "cut", eval_every=4)
    again.train(progress=False)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "task", [cycle(1, 2, 3, 1), cycles_at_every_turn(1, 2, 3, 1)], ids=["at the end", "every turn"]
)
def test_training_brings_the_exact_gap_down(task, tmp_path):
    model = tiny_causal_lm(task.tokenizer, kind="gpt2", layers=1, width=32, context=48)
    encoder = Encoder(task.tokenizer)
    rows = encode_demonstrations(encoder, task.demonstrations(np.random.default_rng(0), 128))
    config = TrainConfig(output=str(tmp_path / "sft"), max_steps=120, batch_size=64, learning_rate=3e-3)
    batches = LengthBuckets([len(row) for row in rows], 64)
    fit(Demonstrations(model), rows, batches, partial(collate, pad_id=encoder.pad_id), config)
    mu = task.policy(model)
    rule = npf.MTPO(beta=0.2, eta=1.0)
    tr = trainer(model, tmp_path / "run", rule, task, rounds=12, samples=16, lines=4, updates=8, reuse=8)
    tr.train(progress=False)
    assert task.gap(tr.model, 0.2, mu).mean() < 0.5 * task.gap(mu, 0.2, mu).mean()


def test_mistakes_are_named(model, tmp_path):
    for options, message in (
        ({"lines": 9}, "lines = 9: from 1 to samples = 8"),
        ({"mixture": "sequence"}, "mixture = 'sequence'"),
        ({"top_k": 2}, "top_k: values of later turns"),
        ({"estimator": "on_policy"}, "estimator = 'on_policy' is of single responses"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(model, tmp_path, **options)
    with pytest.raises(ValueError, match="'nobody' is no prompt of this task"):
        space(model).open(0, "nobody")
    with pytest.raises(ValueError, match="turns = 0: a number from 1 on"):
        DialogueSpace(space(model).completions, User(lambda d: None, 0), Geometry.PER_STATE, 0.0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), strength=st.floats(0.5, 10.0))
def test_preferences_are_complementary(seed, strength):
    task = cycle(1, 2, 3, 1, strength=strength, seed=seed)
    (k,), n = [0], 18
    words, lines = task.words, task.lines
    ends = [said("", a, r, b)[1:] for a in words for r in lines for b in words]
    assert len(ends) == n
    P = task.cross([task.prompts[k]], [ends], [ends])[0].numpy()
    assert np.array_equal(P + P.T, np.ones((n, n)))
