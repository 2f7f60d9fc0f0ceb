"""The points of a plan as Tune trials, on the Ray of this session."""

from collections.abc import Callable

from ray import tune

from offrl_ray.distributed.callbacks import EventFiles, Progress, RecordKeeper
from offrl_ray.distributed.evaluators import start_actors
from offrl_ray.distributed.trainable import Shared, Trial
from offrl_ray.records import Writer
from offrl_ray.run import Loaded
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.sweep.plan import Plan, Resources

RETRIES = 2


def fit(
    resources: Resources,
    plan: Plan,
    loaded: Loaded,
    todo: list[int],
    writer: Writer,
    ledger: Ledger,
    namespace: str,
    say: Callable[[str], None],
) -> None:
    """Run the points `todo`; returns when each has ended, or failed more than `RETRIES` times."""
    r = resources
    actors = start_actors(r.evaluators, namespace, r.cpus_per_evaluator, r.gpus_per_evaluator)
    shared = Shared(
        folder=ledger.folder,
        points=plan.points,
        data=[(d.arrays, d.spec) for d in loaded.data],
        data_of=loaded.of_point,
        evaluated={p.trial: ledger.evaluated(p.trial, p.cfg.train.seeds) for p in plan.points},
        evaluators=[f"evaluator-{i}" for i in range(len(actors))],
        namespace=namespace,
    )
    events = EventFiles(ledger.folder / "tb")
    keeper = RecordKeeper(writer, events, Progress([plan.points[i] for i in todo], say), plan.points)
    trial = tune.with_resources(
        tune.with_parameters(Trial, shared=shared), {"cpu": r.cpus_per_trial, "gpu": r.gpus_per_trial}
    )
    tune.Tuner(
        trial,
        param_space={"point": tune.grid_search(todo)},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(ledger.folder),
            callbacks=[keeper],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
        ),
    ).fit()
    events.close()
