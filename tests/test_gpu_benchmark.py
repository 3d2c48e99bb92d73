"""The GPU script, on a CPU: it runs, and its memory formula counts what there is."""

import json

import pytest
import torch

gpu = pytest.importorskip("benchmarks.gpu", reason="the benchmarks are not part of the wheel")


def test_it_runs_and_writes_what_it_has_measured(tmp_path, capsys):
    pytest.importorskip("peft")
    out = tmp_path / "gpu.json"
    gpu.main(["--size", "tiny", "--out", str(out)])
    said, content = capsys.readouterr().out, json.loads(out.read_text())
    assert "sampling_mixture_tokens_per_second" in said
    assert all(value > 0.0 for value in content["measured"].values())
    with pytest.raises(SystemExit, match="exists already"):
        gpu.main(["--size", "tiny", "--out", str(out)])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no GPU"):
            gpu.main(["--size", "125m"])


@pytest.mark.parametrize("rank", [None, 4])
def test_the_formula_counts_the_weights(rank):
    pytest.importorskip("peft")
    size = gpu.SIZES["tiny"]
    model = gpu.build(size, torch.device("cpu"), torch.bfloat16)
    model = model if rank is None else gpu.Lora(rank=rank).adapt(model)
    rows = {row["rule"]: row for row in gpu.memory(size, rank=rank)}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert rows["GDA"]["weights"] * 2**29 == pytest.approx(sum(p.numel() for p in model.parameters()))
    assert rows["GDA"]["moments"] * 2**28 == pytest.approx(trained)
    assert rows["OGDA"]["kept"] > rows["GDA"]["kept"]
    assert rows["NashMD"]["caches"] == 2.0 * rows["GDA"]["caches"]
