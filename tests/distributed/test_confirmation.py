"""A sweep and its confirmation as a user types them, on a real Ray."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from offrl_ray.records import FILE
from offrl_ray.sweep.confirmation import FOLDER
from tests.distributed.user import Record, Session, log_of, violations

pytestmark = pytest.mark.ray
SCRIPT = """
import sys
from offrl_ray.distributed.launch import main
from tests.distributed.faulty import SWEEP
sys.exit(main(SWEEP, ["--preset", "smoke", *sys.argv[1:]]))
"""
RATES, STEPS, EVERY = [0.001, 0.002, 0.003], 1000, 250
SETTINGS = ["--set", f"train.steps={STEPS}", "--set", f"eval.every={EVERY}"]
ASKED = ["--top", "2", "--seeds", "3", "--episodes", "3"]


class Swept(NamedTuple):
    home: Path
    folder: Path
    records: bytes  # of the sweep, before it was confirmed

    @property
    def place(self) -> Path:
        return self.folder / FOLDER

    @contextmanager
    def command(self, *argv: str | Path) -> Iterator[Session]:
        session = Session(self.home, *argv, env={"RATES": json.dumps(RATES)})
        try:
            yield session
        finally:
            session.close()

    def ended(self, *argv: str | Path) -> str:
        """What a command that ends well says."""
        with self.command(*argv) as session:
            assert session.ended() == 0, session.text
            return session.text

    def sweep(self) -> str:
        return self.ended("-c", SCRIPT, "--out", self.home, *SETTINGS)

    def offrl_ray(self, name: str, *options: str) -> str:
        return self.ended("-m", "offrl_ray", name, self.folder, *options)


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The confirmation was interrupted once, and the same command went on."""
    home = tmp_path_factory.mktemp("home")
    swept = Swept(home, home / "faulty-smoke", b"")
    swept.sweep()
    swept = swept._replace(records=(swept.folder / FILE).read_bytes())
    with swept.command("-m", "offrl_ray", "confirm", swept.folder, *ASKED) as first:
        first.until(lambda: of(log_of(swept.place), "eval"))
        first.send(signal.SIGTERM)
        assert first.ended() == 143, first.text
    assert "drop" in swept.offrl_ray("confirm", *ASKED)
    return swept


def of(log: list[Record], kind: str) -> list[Record]:
    return [r for r in log if r["kind"] == kind]


def test_the_best_points_ran_again_under_their_names(confirmed: Swept) -> None:
    swept, log = log_of(confirmed.folder), log_of(confirmed.place)
    (asked,), (plan,) = of(swept, "plan"), of(log, "plan")
    final: dict[str, float] = {p["trial"]: 0.0 for p in asked["points"]}
    for r in of(swept, "eval"):
        final[r["trial"]] += sum(r["return"]) * (r["step"] == STEPS)
    points = sorted(final, key=lambda name: -final[name])[:2]
    assert plan["confirms"] == {"folder": "faulty-smoke", "digest": asked["digest"], "points": points}
    assert sorted((r["trial"], r["status"]) for r in of(log, "end")) == [(p, "completed") for p in sorted(points)]
    starts = of(log, "start")
    assert not any("cached" in r for r in starts)
    assert max(r["step"] for r in starts) >= EVERY, "what had a checkpoint went on from it"


def test_no_seed_of_the_sweep_is_used_again(confirmed: Swept) -> None:
    swept, log = log_of(confirmed.folder), log_of(confirmed.place)
    assert {r["seed"] for r in of(swept, "eval")} == {0, 1}
    assert {r["seed"] for r in of(log, "train")} == {r["seed"] for r in of(log, "eval")} == {2, 3, 4}
    assert {s for r in of(swept, "eval") for s in r["episode_seeds"]} == {10_000, 10_001}
    assert {tuple(r["episode_seeds"]) for r in of(log, "eval")} == {(20_000, 20_001, 20_002)}


def test_neither_folder_is_confused_by_the_other(confirmed: Swept) -> None:
    assert violations(confirmed.place) == violations(confirmed.folder) == []
    before = (confirmed.place / FILE).read_bytes()
    for told in (confirmed.offrl_ray("confirm", *ASKED), confirmed.sweep()):
        assert "this sweep has ended; nothing to do" in told
    confirmed.offrl_ray("rebuild")
    assert (confirmed.folder / FILE).read_bytes() == confirmed.records
    assert (confirmed.place / FILE).read_bytes() == before
    assert {p.name for p in (confirmed.folder / "tb").glob("*/*")} == {"seed_0", "seed_1"}
    assert {p.name for p in (confirmed.place / "tb").glob("*/*")} == {"seed_2", "seed_3", "seed_4"}
