"""`nashpref reproduce`, quick size: what the CSV files say, and that figures are drawn from them alone."""

import csv
import dataclasses
import importlib.metadata
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

import nashpref as npf
from nashpref.experiments import EXPERIMENTS, reproduce
from nashpref.experiments.common import save

pytest.importorskip("matplotlib")
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    drawn = reproduce(size="quick", out=folder)
    names = [f"{name}.{suffix}" for name in EXPERIMENTS for suffix in ("png", "pdf")]
    assert [path.name for path in drawn] == names
    return folder


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {}
    for name in rows[0]:
        cells = [row[name] for row in rows]
        try:
            columns[name] = np.array(cells, dtype=float)
        except ValueError:
            columns[name] = np.array(cells)
    return columns


def where(table, **values):
    keep = np.logical_and.reduce([table[name] == value for name, value in values.items()])
    return {name: column[keep] for name, column in table.items()}


def settings(out, name):
    return json.loads((out / name / "config.json").read_text(encoding="utf-8"))


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def test_mwu_spirals_out_ogda_and_egpo_spiral_in(out):
    table = read(out / "spirals" / "iterates.csv")
    kl = {method: where(table, method=method)["kl"] for method in ("MWU", "OGDA", "EGPO")}
    assert len({curve[0] for curve in kl.values()}) == 1
    assert (np.diff(kl["MWU"]) > 0.0).all()
    assert kl["MWU"][-1] > 10 * kl["MWU"][0]
    for method in ("OGDA", "EGPO"):
        assert kl[method][-1] < kl[method][0] / 100
    assert where(table, method="MWU")["step"].tolist() == list(range(settings(out, "spirals")["steps"] + 1))
    np.testing.assert_allclose(table["rock"] + table["scissors"] + table["paper"], 1.0, atol=1e-12)


def test_nash_md_keeps_below_both_bounds_and_falls_as_the_square(out):
    table = read(out / "nash_md_bounds" / "schedule.csv")
    made = where(table | {"made": table["step"] > 0}, made=True)
    sharp = 0.5 / (made["beta"] ** 2 * (made["step"] + 1))
    assert (made["kl"] <= sharp).all()
    assert set(made["beta"]) == {1.0, 0.1, 0.01}
    late = where(made | {"late": made["step"] >= 300}, late=True, beta=1.0)
    for game in np.unique(late["game"]):
        curve = where(late, game=game)
        assert slope(curve["step"], curve["kl"]) == pytest.approx(-2.0, abs=0.1)


def test_a_constant_step_biases_nash_md_but_not_gda(out):
    table = read(out / "nash_md_bounds" / "constant.csv")
    last = where(table, step=table["step"].max())
    assert where(last, method="GDA", eta=0.5)["kl"].max() < 1e-25
    bias = {eta: where(last, method="Nash-MD", eta=eta)["kl"] for eta in (0.5, 0.2)}
    assert min(bias[0.5].min(), bias[0.2].min()) > 1e-6
    np.testing.assert_allclose(bias[0.5] / bias[0.2], (0.5 / 0.2) ** 2, rtol=0.15)  # the bias is O(η²)


def test_averages_fall_at_their_rates_and_below_their_bounds(out):
    table, config = read(out / "averages" / "gaps.csv"), settings(out, "averages")
    D, eta = math.log(config["n"]), config["eta"]
    mwu, ogda, onpo = (where(table, method=method) for method in ("MWU", "OGDA", "ONPO"))
    assert sorted(set(mwu["T"])) == list(config["horizons"])
    assert (mwu["average_gap"] <= np.sqrt(2 * D / mwu["T"])).all()
    assert (ogda["T"] * ogda["average_gap"] <= 2 * D / eta + 1 + eta / 4).all()
    assert (onpo["T"] * onpo["average_gap"] <= 2 * D / eta).all()
    assert (onpo["T"] * onpo["average_gap"]).max() > 4 * math.sqrt(D)  # as printed, it fails
    for rows, rate in ((mwu, -0.5), (ogda, -1.0)):
        late = where(rows | {"late": rows["T"] >= 100}, late=True)
        assert slope(late["T"], late["average_gap"]) == pytest.approx(rate, abs=0.06)


def test_regularised_last_iterates_in_the_published_setting(out):
    table = read(out / "regularised" / "gaps.csv")

    def final(beta, method):
        rows = where(table, beta=beta, method=method)
        return where(rows, step=rows["step"].max())["gap"]

    for method in ("EGPO", "OGDA", "Nash-MP"):
        assert final(0.01, method).max() < 1e-12
        assert final(0.1, method).max() < 1e-20
    assert final(0.01, "GDA").max() > 1e-3  # past its stability limit on some games
    assert final(0.1, "GDA").max() < 1e-20
    assert final(0.1, "Nash-MD").min() > 1e-6


def test_comal_converges_where_the_others_do_not(out):
    table = read(out / "comal" / "iterates.csv")
    gap = {
        method: where(table, method=method)["unregularised_gap"]
        for method in ("COMAL", "INPO", "SPPO", "iterative IPO")
    }
    half = len(gap["COMAL"]) // 2
    assert gap["COMAL"][-1] < 1e-8
    assert gap["INPO"][half:].min() > 1e-3
    assert np.ptp(gap["INPO"][half:]) < 1e-6  # a constant gap: it converged, elsewhere
    for method in ("SPPO", "iterative IPO"):
        assert gap[method][half:].min() > 0.1
        assert np.ptp(gap[method][half:]) > 0.1
    last = where(table, method="COMAL")
    np.testing.assert_allclose([last[y][-1] for y in "abc"], np.array([4, 3, 4]) / 11, atol=1e-9)


def test_contraction_factors_are_those_of_the_spectrum(out):
    factors, limits = (read(out / "contraction" / f"{name}.csv") for name in ("factors", "limits"))
    beta = settings(out, "contraction")["beta"]
    near = where(factors | {"near": factors["predicted"] < 1.2}, near=True)
    np.testing.assert_allclose(near["measured"], near["predicted"], rtol=0.05)
    cycles = where(near | {"one_mode": near["game"] != "random, n = 10"}, one_mode=True, method="GDA")
    assert len(cycles["eta"]) >= 6
    np.testing.assert_allclose(cycles["measured"], cycles["predicted"], rtol=1e-3)

    omega = 1 / math.sqrt(12)  # rock-paper-scissors
    limit = {m: where(limits, game="rock-paper-scissors", method=m)["limit"][0] for m in ("GDA", "MMD")}
    assert limit["GDA"] == pytest.approx(2 * beta / (beta**2 + omega**2), rel=1e-9)
    assert limit["MMD"] == pytest.approx(2 * beta / (omega**2 - beta**2), rel=1e-9)
    for game, method, limit in zip(limits["game"], limits["method"], limits["limit"], strict=True):
        points = where(factors, game=game, method=method)
        clear = np.abs(points["eta"] / limit - 1) > 0.02
        assert ((points["measured"] < 1.0) == (points["eta"] < limit))[clear].all()


def test_a_reward_costs_exploitability_where_preferences_cycle(out):
    table = read(out / "exploitability" / "cycle.csv")
    tie = where(table, favour=0.0)
    assert tie["exploitability"].max() < 1e-12  # without a favourite everything stays uniform
    tilted = where(table | {"tilted": table["favour"] > 0}, tilted=True)
    greedy = where(tilted, method="RLHF/DPO", beta=0.0)["exploitability"]
    np.testing.assert_allclose(greedy, 1 / 6, atol=1e-12)  # y3 beats the favourite with 2/3
    assert where(tilted, method="Nash", beta=0.0)["exploitability"].max() < 1e-12
    soft = {m: where(tilted, method=m, beta=0.1)["exploitability"] for m in ("RLHF/DPO", "Nash")}
    assert (soft["Nash"] < soft["RLHF/DPO"] / 2).all()

    ends = where(read(out / "exploitability" / "frontier.csv"), beta=0.0)
    assert where(ends, method="Nash")["exploitability"].max() < 1e-12
    assert where(ends, method="RLHF/DPO")["exploitability"].min() > 0.1


def test_mtpo_keeps_below_its_bound_and_falls_faster_than_mtpo_tau(out):
    table = read(out / "mtpo_bounds" / "schedule.csv")
    made = where(table | {"made": table["step"] > 0}, made=True)
    for method, factor, rate in (("MTPO", 32.0, -4.0), ("MTPO-τ", 8.0, -2.0)):
        rows = where(made, method=method)
        assert len(set(rows["game"])) == 4
        bound = factor * rows["H"] * rows["Q"] ** 2 / (rows["beta"] ** 2 * (rows["step"] + 1))
        assert (rows["kl"] <= bound).all()
        late = where(rows | {"late": rows["step"] >= 100}, late=True, beta=0.5)
        for game in np.unique(late["game"]):
            curve = where(late, game=game)
            assert slope(curve["step"], curve["kl"]) == pytest.approx(rate, abs=0.2)
    assert (made["Q"] < 1.0).all()  # a larger one would make the bound too easy


def test_ompo_keeps_below_its_bound_and_mpo_is_slower(out):
    table, games = (read(out / "ompo_mpo" / f"{name}.csv") for name in ("exploitability", "games"))
    config = settings(out, "ompo_mpo")
    assert (games["S"] <= config["cells"]).all()
    assert ((games["A"] >= 2) & (games["A"] <= config["actions"])).all()
    H, steps = config["H"], config["steps"]
    of = {method: where(table, method=method) for method in np.unique(table["method"])}
    D = games["D"][of["OMPO, weighted"]["game"].astype(int)]
    weighted = of["OMPO, weighted"]
    assert (2 * weighted["average"] <= 10 * H * D / (math.sqrt(0.5) * weighted["T"])).all()
    mpo = of["MPO, theorem"]
    assert sorted(set(mpo["T"])) == list(config["horizons"])
    log_A = np.log(games["A"])[mpo["game"].astype(int)]
    assert (2 * mpo["average"] <= 4 * H**2 * np.sqrt(log_A / mpo["T"])).all()

    end = {method: where(rows, T=steps)["average"] for method, rows in of.items()}
    assert all(len(values) == config["games"] for values in end.values())
    for faster, slower in itertools.pairwise(("OMPO, tuned", "OMPO", "OMPO, weighted", "MPO, theorem")):
        assert (end[faster] < end[slower]).all()
    assert (end["OMPO, tuned"] < end["MPO, tuned"] / 3).all()
    late = where(of["OMPO"] | {"late": of["OMPO"]["T"] >= 30}, late=True)
    for game in np.unique(late["game"]):
        curve = where(late, game=game)
        assert slope(curve["T"], curve["average"]) == pytest.approx(-1.0, abs=0.2)


def test_averages_converge_where_last_iterates_need_a_regulariser(out):
    original, regularised = (read(out / "markov_iterates" / f"{k}.csv") for k in ("original", "regularised"))

    def end(table, method):
        rows = where(table, method=method)
        return where(rows, step=rows["step"].max())

    for method in ("MPO", "OMPO"):
        assert (end(original, method)["average_gap"] < 0.1).all()
    assert (end(original, "MPO")["gap"] > 0.1).all()
    assert (end(original, "OMPO")["average_gap"] < end(original, "MPO")["average_gap"]).all()

    config = settings(out, "markov_iterates")
    rate = 2 * math.log(1 - config["beta"] * config["regularised_eta"])
    ompo = where(regularised, method="OMPO")
    late = where(ompo | {"late": ompo["step"] >= 100}, late=True)
    for game in np.unique(late["game"]):
        curve = where(late, game=game)
        per_step = np.polyfit(curve["step"], np.log(curve["gap"]), 1)[0]
        assert per_step == pytest.approx(rate, rel=0.05)
    assert (end(regularised, "OMPO")["gap"] < end(regularised, "MTPO")["gap"]).all()
    for method in ("OMPO", "MTPO"):
        last = end(regularised, method)
        assert (last["gap"] < last["average_gap"] / 1000).all()


def test_only_the_occupancy_geometry_stands_large_steps(out):
    gaps = read(out / "geometries" / "gaps.csv")
    small, large = sorted(set(gaps["eta"]))

    def curve(eta, geometry):
        rows = where(gaps, eta=eta, geometry=geometry)
        return where(rows | {"late": rows["T"] >= 100}, late=True)

    for eta in (small, large):
        rows = curve(eta, "occupancy")
        for game in np.unique(rows["game"]):
            one = where(rows, game=game)
            assert slope(one["T"], one["average_gap"]) == pytest.approx(-1.0, abs=0.2)
    ratio = {
        e: curve(e, "per-state")["average_gap"] / curve(e, "occupancy")["average_gap"] for e in (small, large)
    }
    np.testing.assert_allclose(ratio[small], 1.0, atol=0.05)
    assert ratio[large][-1] > 2.0
    assert np.median(ratio[large]) > 1.5


def test_in_the_dialogue_nash_mixes_and_rlhf_bets_on_one_answer(out):
    turns, summary = (read(out / "dialogue" / f"{name}.csv") for name in ("turns", "summary"))
    for policy in ("RLHF", "Nash"):
        rows = where(turns, policy=policy)
        first, second = where(rows, turn=1), where(rows, turn=2)
        np.testing.assert_allclose(first["occupancy"], first["probability"])
        np.testing.assert_allclose(first["probability"].sum(), 1.0, atol=1e-12)
        for child, arriving in zip(first["child"], first["occupancy"], strict=True):
            there = where(second, node=child)
            np.testing.assert_allclose(there["occupancy"].sum(), arriving, atol=1e-12)
            np.testing.assert_allclose(there["occupancy"], arriving * there["probability"], atol=1e-12)
        assert sorted(second["child"]) == list(range(9))
    # A Bradley–Terry fit to all pairs ranks dialogues by their wins: RLHF bets on the one with the most.
    ends = where(turns, policy="RLHF", turn=2)
    wins = npf.zoo.dialogue().payoffs[0].sum(axis=1)
    assert ends["child"][ends["occupancy"].argmax()] == wins.argmax()
    at_first = {p: where(turns, policy=p, turn=1)["probability"] for p in ("RLHF", "Nash")}
    assert at_first["RLHF"].max() > 0.9
    np.testing.assert_allclose(at_first["Nash"], np.array([46, 20, 45]) / 111, atol=0.02)  # of β = 0
    exploitability = {p: where(summary, policy=p)["exploitability"][0] for p in ("RLHF", "Nash")}
    assert exploitability["Nash"] < exploitability["RLHF"] / 5


def test_the_true_gap_falls_though_training_knows_a_learned_preference_only(out):
    training, quality = (
        read(out / "learned_preference" / f"{name}.csv") for name in ("training", "preference")
    )
    config = settings(out, "learned_preference")
    assert training["step"][-1] == config["rounds"] * config["updates"] * 2  # EGPO fits twice a round
    assert len(training["step"]) == config["evaluations"] + 1
    assert training["gap"][-1] < training["gap"][0] / 2
    assert training["learned_gap"][-1] < training["learned_gap"][0] / 4
    assert training["learned_gap"][-1] < training["gap"][-1] / 2  # it is not the true game that is solved
    assert 0.0 < quality["wrong"][0] < 0.15
    assert quality["learned_equilibrium"][0] < training["gap"][0] / 3


def test_importance_weights_leave_a_part_of_what_sets_the_mixtures_apart(out):
    table = read(out / "learned_preference" / "mixtures.csv")
    for pair in set(table["policies"]):
        rows = where(table, policies=pair)
        assert rows["total_variation"][[0, -1]].max() < 1e-12
        inside = where(rows | {"inside": (rows["weight"] > 0) & (rows["weight"] < 1)}, inside=True)
        assert (inside["total_variation"] > 1e-4).all()
        for K, share in ((8, 0.25), (32, 0.08), (128, 0.04)):  # as 1/K, and a little noise
            assert (inside[f"weighted_{K}"] < share * inside["total_variation"]).all()


def test_dialogues_start_where_their_exact_rules_do(out):
    table = read(out / "dialogue_training" / "gaps.csv")
    methods = set(table["method"])
    assert methods == {
        *("MTPO", "MTPO-τ", "OMPO", "MPO", "RLHF", "DPO"),
        *("compared after every turn", "compared at the end"),
    }
    for method in ("MTPO", "MTPO-τ", "OMPO", "MPO", "compared after every turn"):
        rows = where(table, method=method)
        assert rows["gap"][0] == pytest.approx(rows["exact"][0], rel=1e-9)
        assert (np.diff(rows["exact"]) < 0.0).all()
    rows = where(table, method="compared at the end")
    assert (rows["exact"] == rows["exact"][0]).all()  # what the last turn alone cannot go below
    assert 0.0 < rows["exact"][0] < rows["gap"][0]


def test_the_equilibrium_of_candidates_is_as_good_as_the_best_where_there_is_one(out):
    table = read(out / "best_of_n" / "exploitability.csv")
    for task in set(table["task"]):
        ours, theirs = (where(table, task=task, selection=each) for each in ("equilibrium", "Bradley–Terry"))
        np.testing.assert_array_equal(ours["n"], theirs["n"])
        assert ours["exploitability"][0] == pytest.approx(theirs["exploitability"][0])  # of one
        if task == "control":
            np.testing.assert_allclose(ours["exploitability"], theirs["exploitability"], atol=1e-9)
        else:
            assert ours["exploitability"][-1] <= theirs["exploitability"][-1]
        assert (ours["low"] <= ours["exploitability"]).all()
        assert (ours["exploitability"] <= ours["high"]).all()


def test_nothing_of_the_truth_reaches_the_training(monkeypatch):
    """While the policy trains, the task's preference is never asked; its exact gap is only measured."""
    from nashpref.llm.exact_task import Task
    from nashpref.llm.nash import NashTrainer
    from nashpref.llm.preferences import GeneralPreferenceModel

    train, preferences = NashTrainer.train, []

    def forbidden(*_):
        raise AssertionError("the truth was asked")

    def guarded(self, **options):
        preferences.append(self.space.preference)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("__call__", "cross", "matrix"):
                patch.setattr(Task, name, forbidden)
            return train(self, **options)

    monkeypatch.setattr(NashTrainer, "train", guarded)
    sizes = EXPERIMENTS["learned_preference"].sizes
    few = {"sft_steps": 2, "votes": 64, "preference_steps": 25, "rounds": 2, "updates": 1, "evaluations": 2}
    EXPERIMENTS["learned_preference"].run(dataclasses.replace(sizes["quick"], **few))
    assert [type(each) for each in preferences] == [GeneralPreferenceModel]


def test_the_same_run_gives_the_same_bytes(out, tmp_path):
    reproduce(size="quick", out=tmp_path)
    files = sorted(path.relative_to(out) for path in out.rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert {path.suffix for path in files} == {".json", ".csv", ".png", ".pdf"}
    for path in files:
        assert (out / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_figures_only_read(out):
    """Where nothing can be solved, the same figures come out."""
    before = {path: path.read_bytes() for path in (out / "figures").iterdir()}
    for path in before:
        path.unlink()
    code = f"""
import sys
from pathlib import Path
import nashpref as npf
import nashpref.experiments as experiments

def forbidden(*args, **options):
    raise AssertionError("a figure computed something")

for name in ("solve", "equilibrium", "duality_gap", "best_response"):
    for module in [m for key, m in sys.modules.items() if key.startswith("nashpref")]:
        if callable(getattr(module, name, None)):
            setattr(module, name, forbidden)
npf.MatrixGame.__init__ = npf.MarkovGame.__init__ = forbidden
for name in experiments.EXPERIMENTS:
    experiments.draw(name, Path({str(out)!r}))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert {path: path.read_bytes() for path in (out / "figures").iterdir()} == before


def test_real_matrices_take_the_place_of_the_synthetic_one(tmp_path):
    path = tmp_path / "ours.csv"
    path.write_text("row,a,b,c\na,0.5,0.8,0.4\nb,0.2,0.5,0.7\nc,0.6,0.3,0.5\n", encoding="utf-8")
    png, pdf = reproduce(["exploitability"], size="quick", out=tmp_path, data=[path])
    assert png.stat().st_size > 10_000
    assert pdf.read_bytes().startswith(b"%PDF")
    frontier = read(tmp_path / "exploitability" / "frontier.csv")
    assert set(frontier["game"]) == {"ours"}
    start = where(frontier, method="Nash", beta=100.0)
    assert start["exploitability"][0] == pytest.approx(0.2 / 3, abs=1e-3)  # a against uniform


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (["spiral"], None, "no experiment 'spiral'"),
        (["spirals"], "row,a,b\na,0.5,0.6\nb,0.4,0.5\n", "only the experiment 'exploitability'"),
        (["exploitability"], "row,a,b\na,0.5,0.9\nb,0.4,0.5\n", "bad.csv"),
        (["exploitability"], "row,a,b\na,0.5,1\nb,0,0.5\n", "'a' never lost"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, names, content, message):
    data = []
    if content is not None:
        data = [tmp_path / "bad.csv"]
        data[0].write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        reproduce(names, size="quick", out=tmp_path / "results", data=data)
    assert not (tmp_path / "results").exists()


def test_a_failed_write_leaves_the_old_result(tmp_path):
    config = EXPERIMENTS["spirals"].sizes["quick"]
    save(tmp_path, config, {"table": {"x": np.arange(3.0)}})
    old = (tmp_path / "table.csv").read_bytes()
    with pytest.raises(ValueError, match="shorter"):
        save(tmp_path, config, {"table": {"x": np.arange(5.0), "y": np.arange(4.0)}})
    assert (tmp_path / "table.csv").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "env.json", "table.csv"]


def test_every_experiment_has_three_sizes_and_says_where_it_ran(out):
    for name, experiment in EXPERIMENTS.items():
        assert set(experiment.sizes) == {"quick", "default", "full"}
        env = json.loads((out / name / "env.json").read_text(encoding="utf-8"))
        assert env["nashpref"] == npf.__version__
        assert env["numpy"] == np.__version__
        assert env["torch"] == importlib.metadata.version("torch")
        assert env["cpus"] >= 1


def test_a_package_that_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"learned_preference needs torch: pip install 'nashpref\[llm\]'"):
        reproduce(["spirals", "learned_preference"], size="quick", out=tmp_path / "results")
    assert not (tmp_path / "results").exists()
