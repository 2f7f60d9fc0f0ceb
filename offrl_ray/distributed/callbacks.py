"""The driver's side of a sweep: every report goes to the records at once, then to event files and the terminal."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from torch.utils.tensorboard import SummaryWriter

from offrl_ray.records import Writer
from offrl_ray.sweep.plan import Point

Record = dict[str, Any]
LINE_EVERY_SECONDS = 10


class EventFiles:
    """TensorBoard files derived from records: one run per trial and seed, on the axis of updates."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._writers: dict[tuple[str, int], SummaryWriter] = {}

    def add(self, record: Record) -> None:
        if record["kind"] == "train":
            values = {f"train/{k}": v for k, v in record["metrics"].items()}
        elif record["kind"] == "eval":
            names = ("success_once", "success_at_end", "return", "length")
            values = {f"eval/{n}": sum(record[n]) / len(record[n]) for n in names}
        else:
            return
        run = (record["trial"], record["seed"])
        if run not in self._writers:
            self._writers[run] = SummaryWriter(str(self._folder / run[0] / f"seed_{run[1]}"))
        for tag, value in values.items():
            self._writers[run].add_scalar(tag, value, record["step"])
        self._writers[run].flush()

    def close(self) -> None:
        for w in self._writers.values():
            w.close()


class Progress:
    """What a person wants to see while a sweep runs."""

    def __init__(self, points: list[Point], say: Callable[[str], None]):
        self._points = {p.trial: p for p in points}
        self._steps = dict.fromkeys(self._points, 0)
        self._total = sum(p.cfg.train.steps for p in points)
        self._skipped = 0  # steps that an earlier session had done
        self._say, self._began, self._last = say, time.monotonic(), 0.0
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._best: tuple[float, str] | None = None
        self._scores: dict[tuple[str, int], float] = {}
        self._returns: dict[tuple[str, int], float] = {}

    def add(self, record: Record) -> None:
        trial = record["trial"]
        if record["kind"] == "start":
            self._started.add(trial)
            self._skipped += record["step"] - self._steps[trial]
        if record["kind"] in ("start", "train"):
            self._steps[trial] = record["step"]
        if record["kind"] == "eval" and record["step"] == self._points[trial].cfg.train.steps:
            self._scores[trial, record["seed"]] = sum(record["success_once"]) / len(record["success_once"])
            self._returns[trial, record["seed"]] = sum(record["return"]) / len(record["return"])
        if record["kind"] == "end":
            self._ended.add(trial)
            self._end(record)
        elif time.monotonic() - self._last > LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            self._say(self._line())

    def _end(self, record: Record) -> None:
        mean, ret = (_mean(d, record["trial"]) for d in (self._scores, self._returns))
        if mean is not None and (self._best is None or mean > self._best[0]):
            self._best = (mean, record["trial"])
        score = f", success_once {mean:.2f}, return {ret:.4g}" if mean is not None else ""
        reason = f" ({record['reason']})" if record["reason"] else ""
        self._say(f"  {record['trial']}: {record['status']} at {record['step']} updates{score}{reason}")
        self._say(self._line())

    def _line(self) -> str:
        elapsed = time.monotonic() - self._began
        updates, asked = sum(self._steps.values()) - self._skipped, self._total - self._skipped
        eta = f"{_clock(elapsed * (asked / updates - 1))} left" if updates > 0 else "no estimate yet"
        best = f", best success_once {self._best[0]:.2f} at {self._best[1]}" if self._best else ""
        running = len(self._started - self._ended)
        done = f"{len(self._ended)}/{len(self._points)} points done, {running} running"
        return f"{done}, {_clock(elapsed)} gone, {eta}{best}"


def _mean(scores: dict[tuple[str, int], float], trial: str) -> float | None:
    found = [v for (t, _), v in scores.items() if t == trial]
    return sum(found) / len(found) if found else None


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class RecordKeeper(tune.Callback):
    """Single writer of the sweep's records."""

    def __init__(self, writer: Writer, events: EventFiles, progress: Progress, points: list[Point]):
        self._writer, self._events, self._progress, self._points = writer, events, progress, points

    def write(self, record: Record) -> None:
        self._writer.write(**record, time=time.time())
        self._events.add(record)
        self._progress.add(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        # taken out of the result, so that Tune does not store every record a second time
        for record in result.pop("records", []):
            self.write(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        point = self._points[trial.config["point"]]
        error = str(trial.get_error() or "").strip().splitlines()
        reason = error[-1] if error else "unknown"
        step = int((trial.last_result or {}).get("updates", 0))
        end = {"status": "failed", "reason": reason, "step": step, "diverged": {}, "cost": {}}
        self.write({"kind": "end", "trial": point.trial, **end})
