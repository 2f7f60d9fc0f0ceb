"""Twenty updates of every variant against recorded metrics; `python tests/test_golden.py` records them anew."""

import json
from pathlib import Path

import pytest
import torch

from offrl_ray.algos import VARIANTS, make
from offrl_ray.train import start, train
from tests.toys import run_config, spec_of, walks

GOLDEN = Path(__file__).parent / "golden"


def trace(variant: str) -> list[dict[str, float]]:
    """Metrics of updates 1-5, 6-10, 11-15 and 16-20, meaned."""
    data = walks(spec_of(variant))
    cfg = run_config(
        variant, train_steps=20, train_report_every=5, train_batch_size=16, train_seeds=(0,), eval_every=20
    )
    alg = make(cfg.algo, data.spec)
    return [{k: m.item() for k, m in p.metrics.items()} for p in train(cfg, alg, data, start(cfg, alg))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_20_updates_are_the_recorded_ones(variant: str) -> None:
    recorded = json.loads((GOLDEN / f"{variant}.json").read_text())
    assert trace(variant) == [pytest.approx(report, rel=1e-4) for report in recorded]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in VARIANTS:
        (GOLDEN / f"{name}.json").write_text(json.dumps(trace(name), indent=1) + "\n")
