"""What the full preset of CPQL costs on a GPU, as tables for LOG.md: `python tests/benchmarks/gpu.py | tee gpu.md`.

Updates a second with 1, 2, 4 and 8 stacked seeds and each gradient mode, two trials side by side against one, and
episodes a second in 50, 100 and 200 parallel environments; with the memory that each takes, and the GPU's utilisation.
It collects a few demonstrations first, or takes --data FILE.h5 (LiftPegUpright-v1, pd_ee_delta_pose, sparse). Nothing
else may run on the GPU. In small, where there is none:

python tests/benchmarks/gpu.py --device cpu --updates 3 --seeds 1,2 --envs 1 --episodes 2 --set algo.network.kind=resmlp
"""

import argparse
import dataclasses
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from offrl_ray.algos import make
from offrl_ray.collect import collect
from offrl_ray.config import RunConfig, parse_assignments
from offrl_ray.evaluate import EvalRequest, evaluate_members, open_env
from offrl_ray.policy import acting_and_critic
from offrl_ray.probe import Rehearsal, size
from offrl_ray.run import Data, in_env, load_data, memory
from offrl_ray.sweep.plan import plan
from offrl_ray.train import start
from tune_configs.tune_cpql import SWEEP

MODES = "single_step,last_5,whole_grad"
ASK = [
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
    "--id=0",
    "-lms",
    "100",
]
Work = Callable[[], float]
"""What is timed; returns how many updates or episodes a second it made."""


class Cost(NamedTuple):
    """Of processes side by side."""

    rates: list[float]  # units a second of each; none if one failed
    torch_bytes: int = 0  # that torch took of the GPU in one process
    gpu_bytes: int | None = None  # that all took of the GPU; None: not known
    utilisation: float | None = None  # percent of the time in which a kernel ran
    own_bytes: int = 0  # RAM of one process's own
    error: str = ""


# -- what runs in a process of its own


def updates(cfg: RunConfig, data: Data, count: int) -> Work:
    rehearsal = Rehearsal(cfg, data)
    return lambda: 1 / rehearsal.run(count).seconds


def episodes(cfg: RunConfig, data: Data) -> Work:
    """One episode in each environment, after as many that do not count."""
    alg = make(cfg.algo, data.spec)
    members = {0: acting_and_critic(start(cfg, alg).state, 0)}
    env = open_env(cfg.env)

    def evaluate() -> float:
        return cfg.eval.episodes / evaluate_members(EvalRequest(0, "", cfg, data.spec, members), env).seconds

    evaluate()
    return evaluate


def serve(line: Any, prepare: Callable[..., Work], args: Sequence[Any]) -> None:
    """Get ready, wait for the word, work, tell, and stay until the line is closed: until the memory has been read."""
    try:
        work = prepare(*args)
        line.send("ready")
        line.recv()
        rate = work()
        line.send(
            (rate, torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0, memory()["own_peak_bytes"])
        )
        line.recv()
    except EOFError:
        pass
    except Exception as e:
        line.send(" ".join(f"{type(e).__name__}: {e}".split())[:120])


# -- beside it


class Sampler:
    """The GPU's utilisation and used memory ten times a second; nothing where there is no nvidia-smi."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []  # seconds, percent, MiB
        try:
            self._process = subprocess.Popen(ASK, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except FileNotFoundError:
            return
        threading.Thread(target=self._read, daemon=True).start()
        time.sleep(1)

    def _read(self) -> None:
        assert self._process.stdout
        for text in self._process.stdout:
            numbers = [float(x) for x in text.split(",") if x.strip().replace(".", "").isdigit()]
            if len(numbers) == 2:
                self.samples.append((time.monotonic(), *numbers))

    def since(self, began: float) -> list[tuple[float, float, float]]:
        return [s for s in self.samples if s[0] >= began]

    def close(self) -> None:
        if hasattr(self, "_process"):
            self._process.terminate()


@contextmanager
def processes(count: int, prepare: Callable[..., Work], args: Sequence[Any]) -> Iterator[list[Any]]:
    context = multiprocessing.get_context("spawn")
    lines, started = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        started.append(context.Process(target=serve, args=(theirs, prepare, args)))
        started[-1].start()
        theirs.close()
        lines.append(ours)
    try:
        yield lines
    finally:
        for line, process in zip(lines, started, strict=True):
            line.close()
            process.join()


def answer(line: Any) -> Any:
    """What a process tells, or raises what it died of."""
    try:
        told = line.recv()
    except EOFError:
        told = "the process was killed"
    if isinstance(told, str) and told != "ready":
        raise RuntimeError(told)
    return told


def cost(sampler: Sampler, count: int, prepare: Callable[..., Work], *args: Any) -> Cost:
    """So many processes side by side, all ready before any begins."""
    before = sampler.since(time.monotonic() - 1)
    try:
        with processes(count, prepare, args) as lines:
            for line in lines:
                answer(line)
            began = time.monotonic()
            for line in lines:
                line.send("go")
            told = [answer(line) for line in lines]
            during = sampler.since(began)
    except RuntimeError as e:
        return Cost([], error=str(e))
    finally:
        time.sleep(1 if sampler.samples else 0)  # until the GPU's memory is free again
    rates, gpu, own = zip(*told, strict=True)
    if not (before and during):
        return Cost([*rates], max(gpu), own_bytes=max(own))
    took = 2**20 * (max(m for _, _, m in during) - min(m for _, _, m in before))
    return Cost([*rates], max(gpu), int(took), fmean(u for _, u, _ in during), max(own))


# -- what is asked


def base(args: argparse.Namespace, folder: Path) -> tuple[RunConfig, Data]:
    """A point of the full preset on this device, and its data."""
    data = args.data
    if data is None:
        data, demos = folder / "demos.h5", SWEEP.presets["full"].demos
        collect(demos.env_id, args.episodes, demos.noise, demos.seed, data)
    given, problems = parse_assignments(args.set)
    if problems:
        raise SystemExit("\n".join(problems))
    given |= {"algo.alpha": 0.05, "algo.q_grad_mode": "single_step", "train.device": args.device, "env.num_envs": 1}
    given |= {"env.sim_backend": "physx_cuda" if args.device.startswith("cuda") else "physx_cpu"}
    cfg = plan(SWEEP, "full", given, [str(data)]).cells[0].cfg
    found = load_data(cfg)
    return in_env(cfg, found.env_id), found


def change(cfg: RunConfig, **changes: dict[str, Any]) -> RunConfig:
    """change(cfg, train={"seeds": (0, 1)})"""
    return dataclasses.replace(cfg, **{k: dataclasses.replace(getattr(cfg, k), **v) for k, v in changes.items()})


def row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def shown(found: Cost) -> list[str]:
    if found.error:
        return [found.error, "", "", ""]
    gpu = [size(found.torch_bytes) if found.torch_bytes else "-"]
    gpu += ["-" if found.gpu_bytes is None else size(found.gpu_bytes)]
    return [*gpu, size(found.own_bytes), "-" if found.utilisation is None else f"{found.utilisation:.0f} %"]


def head(*columns: str) -> str:
    columns += ("torch", "GPU, all", "RAM, each", "utilisation")
    return f"\n{row(*columns)}\n{row(*['---'] * len(columns))}"


def measure(args: argparse.Namespace, cfg: RunConfig, data: Data, sampler: Sampler) -> Iterator[str]:
    """The tables, line by line as they are known."""
    yield head("q_grad_mode", "seeds", "updates/s", "of all seeds")
    for mode in args.modes.split(","):
        for seeds in map(int, args.seeds.split(",")):
            point = change(cfg, algo={"q_grad_mode": mode}, train={"seeds": tuple(range(seeds))})
            found = cost(sampler, 1, updates, point, data, args.updates)
            yield row(mode, seeds, f"{sum(found.rates):.3g}", f"{seeds * sum(found.rates):.3g}", *shown(found))
    yield head("trials side by side", "seeds each", "updates/s each", "in all")
    stacked = change(cfg, algo={"q_grad_mode": args.modes.split(",")[-1]})
    for count in (1, 2):
        found = cost(sampler, count, updates, stacked, data, args.updates)
        each = ", ".join(f"{r:.3g}" for r in found.rates)
        yield row(count, len(stacked.train.seeds), each, f"{sum(found.rates):.3g}", *shown(found))
    yield head("environments", "episodes/s")
    for envs in map(int, args.envs.split(",")):
        point = change(cfg, env={"num_envs": envs}, eval={"episodes": envs}, train={"seeds": (0,)})
        found = cost(sampler, 1, episodes, point, data)
        yield row(envs, f"{sum(found.rates):.3g}", *shown(found))


def about(cfg: RunConfig, args: argparse.Namespace) -> str:
    cuda = torch.cuda.is_available() and args.device.startswith("cuda")
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, no GPU"
    return (
        f"{device}, torch {torch.__version__}, Python {platform.python_version()}; `{' '.join(sys.argv)}`\n\n"
        f"CPQL, {cfg.algo.network.kind}, batch {cfg.train.batch_size}, {args.updates} updates each; "
        f"episodes of {cfg.env.max_steps} steps in {cfg.env.sim_backend}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--updates", type=int, default=200, help="of each configuration (default: 200)")
    add("--seeds", default="1,2,4,8", help="stacked in one trial (default: 1,2,4,8)")
    add("--modes", default=MODES, help=f"of the gradient (default: {MODES})")
    add("--envs", default="50,100,200", help="stepped together (default: 50,100,200)")
    add("--data", type=Path, help="trajectory file (default: collect one)")
    add("--episodes", type=int, default=100, help="to collect (default: 100)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the full preset")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU; --device cpu shows that the path works")
    with tempfile.TemporaryDirectory() as folder, closing(Sampler()) as sampler:
        cfg, data = base(args, Path(folder))
        print(about(cfg, args), flush=True)
        for line in measure(args, cfg, data, sampler):
            print(line, flush=True)


if __name__ == "__main__":
    main()
