"""The jobs of a conductor as Tune trials, on the Ray of this session."""

import shutil
from collections.abc import Callable
from typing import Any

from ray import tune

from offrl_ray.distributed.callbacks import Jobs, Reports, Watch
from offrl_ray.distributed.reserve import start_actors
from offrl_ray.distributed.trainable import Shared, Trial
from offrl_ray.run import Loaded
from offrl_ray.store import called
from offrl_ray.sweep.conductor import Conductor
from offrl_ray.sweep.plan import Resources


def fit(
    resources: Resources,
    loaded: Loaded,
    conductor: Conductor,
    namespace: str,
    tick: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Run until the conductor has nothing left, or drains. `resources` names the number of evaluators."""
    r = resources
    assert r.evaluators is not None
    ended = lambda: conductor.draining  # noqa: E731
    actors = start_actors(r.evaluators, namespace, r.cpus_per_evaluator, r.gpus_per_evaluator, say, ended)
    shared = Shared(
        folder=called(conductor.ledger.folder),
        data=[(d.arrays, d.spec) for d in loaded.data],
        data_of=loaded.of_setting,
        evaluators=list(actors),
        namespace=namespace,
        hang_seconds=r.hang_seconds,
    )
    trial = tune.with_parameters(Trial, shared=shared)
    schedule(tune.with_resources(trial, {"cpu": r.cpus_per_trial, "gpu": r.gpus_per_trial}), conductor, r, tick, say)


def schedule(
    trainable: Any,
    conductor: Conductor,
    resources: Resources,
    tick: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Tune places and runs; retries, restores and snapshots are not its business (sweep/conductor.py)."""
    folder = conductor.ledger.folder
    notes = folder / ".tune"
    shutil.rmtree(notes, ignore_errors=True)  # of a driver that was killed
    watch = Watch(conductor, folder, resources, tick, say)
    config = tune.TuneConfig(
        search_alg=Jobs(conductor),
        num_samples=-1,
        reuse_actors=True,
        trial_name_creator=lambda trial: trial.trial_id,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    run = tune.RunConfig(
        name=notes.name,
        storage_path=str(folder),
        stop=Reports(conductor, watch),
        callbacks=[watch],
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
    )
    try:
        tune.Tuner(trainable, tune_config=config, run_config=run).fit()
    finally:
        shutil.rmtree(notes, ignore_errors=True)
