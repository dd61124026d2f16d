"""Verification of a suite: everything in the store that its methods use is read and compared with its record.

Nothing is trained, sampled (except images to compare) or asked of a language model. An artifact that is not in the
store has not been made yet, which is no defect. An address that depends on what is damaged or not made yet is unknown;
methods with such addresses are reported as not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from counterpoise.data.dataset import table_files
from counterpoise.data.table import check_table
from counterpoise.errors import CounterpoiseError
from counterpoise.storage.records import read_record
from counterpoise.synthesis.pool import verify as pool_checks
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.resolve import answer_keys
from counterpoise.synthesis.selection import select
from counterpoise.synthesis.selection.request import PlanRequest
from counterpoise.synthesis.selection.selected_images import SelectedImages
from counterpoise.workflow import equal_compute
from counterpoise.workflow.findings import Findings
from counterpoise.workflow.run import Run
from counterpoise.workflow.synthesis import GuideTraining, Synthesized, each_round, number_of_rounds

if TYPE_CHECKING:  # imported where artifacts of training are checked, as it needs torch
    from counterpoise.training.stages import StageFit
    from counterpoise.workflow.outcomes import MethodRun


def verify(run: Run, regenerate: int = 0) -> Findings:
    """Check all artifacts of a run's methods, of the equal-compute control if the run has one, and of their pools.

    Args:
        run: The run. Its dataset is read; nothing else of it is computed.
        regenerate: Images of each pool to sample again and compare.

    Raises:
        CounterpoiseError: The store, the source of the dataset or a model cannot be read.
    """
    found = Findings(run.store)
    files = table_files(run.suite.shared.data)
    if found.look("dataset", (files.record,), lambda: None) == "sound":
        for key, wrong in check_table(run.store, files):
            found.add("dataset", key, wrong, (files.record, key))
    states = found.states["dataset"]
    if set(states.values()) != {"sound"}:
        reason = "the dataset is not imported" if states[files.record] == "missing" else "it is damaged"
        found.unchecked |= dict.fromkeys(run.suite.methods, f"the dataset's table is needed: {reason}")
        return found
    _check_methods(found, run, _check_images(found, run, regenerate))
    return found


# -- synthetic images --------------------------------------------------------------------------------------------------


def _check_images(found: Findings, run: Run, regenerate: int) -> Synthesized:
    """Check prompts, pools and guide classifiers; return the images of methods that have all of them."""
    planned = {method: one for method, one in run.suite.planned.items() if _check_prompts(found, run, method)}
    guides = {method: run.factory.guide_training(one) for method, one in planned.items() if one.feedback}
    pools = {method: run.factory.pool(one) for method, one in planned.items()}

    def take(pool: Pool, training: GuideTraining | None, asked: Sequence[PlanRequest]) -> SelectedImages | None:
        if training is not None:
            _check_guide(found, pool, training)
        return _selected(found, pool, asked, regenerate, run.suite.shared.seed)

    synthesized = each_round(pools, guides, run.requests, run.factory.pool, take)
    for method, experiment in planned.items():
        if len(synthesized.rounds[method]) < number_of_rounds(experiment):
            found.unchecked[method] = "its images are damaged, or not all sampled"
    return synthesized


def _check_prompts(found: Findings, run: Run, method: str) -> bool:
    states = [
        found.look("prompts", (key,), partial(read_record, run.store, key))
        for key in answer_keys(run.suite.methods[method].prompts, run.dataset.names)
    ]
    if set(states) <= {"sound"}:
        return True
    found.unchecked[method] = "its prompts are damaged, or the language model has not been asked"
    return False


def _check_guide(found: Findings, pool: Pool, training: GuideTraining) -> None:
    from counterpoise.synthesis.feedback.classifier import guide_fits

    guide = pool.guide
    assert guide is not None
    if training.stage is not None:
        _check_stages(found, guide_fits(training.experiment, training.views, training.validation, training.stage))
    if guide.needs_statistics:
        found.look("statistics", (guide.statistics_record, guide.statistics_key), guide.read_statistics)


def _selected(
    found: Findings, pool: Pool, requests: Sequence[PlanRequest], regenerate: int, seed: int
) -> SelectedImages | None:
    """Check a pool, and return the images of the methods for which it has all."""
    check = pool_checks.verify(pool, regenerate, seed)
    found.pools.append((pool, check))
    found.states["images"] |= dict.fromkeys(check.keys, "sound")
    for key, wrong in check.bad:
        found.add("images", key, wrong, (key,))
    found.states["images"] |= dict.fromkeys(check.gaps, "missing")
    try:
        lacking = {method: taker.missing() for method, taker in select.takers_of(pool, requests).items()}
        asked = [request for request in requests if not lacking[request.method]]
        images = select.select_images(pool, asked) if asked else None
    except CounterpoiseError:  # rows of a damaged shard cannot be read
        return None
    found.states["images"] |= {shard.key(pool.digest): "missing" for shards in lacking.values() for shard in shards}
    return images


# -- stages and results ------------------------------------------------------------------------------------------------


def _check_methods(found: Findings, run: Run, synthesized: Synthesized) -> None:
    from counterpoise.workflow import outcomes

    methods = [method for method in run.suite.methods if method not in found.unchecked]
    views = {method: {"real": run.dataset.train, **synthesized.views(method)} for method in methods}
    suite = run.suite
    if run.with_control and not found.unchecked:
        shown = {method: view | {"validation": run.dataset.validation} for method, view in views.items()}
        control = equal_compute.control(suite, shown)
        suite = suite if control is None else suite.with_methods(control.experiments)
    runs = []
    for experiment in suite.experiments:
        if experiment.method not in found.unchecked:
            real = {"real": run.dataset.train}
            task = outcomes.method_run(experiment, views.get(experiment.method, real), run.dataset, run.store)
            try:
                _check_stages(found, task.fits)
            except CounterpoiseError as error:  # its stages cannot be trained, so they have no addresses
                found.unchecked[experiment.method] = error.message
                continue
            _check_result(found, task)
            runs.append(task)
    _check_realism(found, run, synthesized, runs)


def _check_stages(found: Findings, fits: Iterable[StageFit]) -> None:
    from counterpoise.training.models import read_weights

    for fit in fits:
        keys = (fit.record_key, fit.weights_key)
        found.look("stages", keys, partial(read_weights, fit.store, fit.weights_key))
        if fit.gradients is not None:
            found.look("masks", (fit.gradients.record_key,), fit.gradients.read)
        if fit.start is not None and fit.before is None:
            found.look("start weights", (fit.start,), partial(read_weights, fit.store, fit.start))


def _check_result(found: Findings, task: MethodRun) -> None:
    if found.look("results", (task.key,), partial(read_record, task.store, task.key)) == "sound":
        lost = [fit for fit in task.fits if found.states["stages"][fit.record_key] != "sound"]
        if lost:
            states = ", ".join(f"{fit.stage.name} is {found.states['stages'][fit.record_key]}" for fit in lost)
            found.add("results", task.key, f"of its stages, {states}", (task.key,))


def _check_realism(found: Findings, run: Run, synthesized: Synthesized, runs: Sequence[MethodRun]) -> None:
    from counterpoise.workflow import realism

    made = {method: list(synthesized.views(method).values()) for method in run.suite.planned}
    made = {method: views for method, views in made.items() if views and method not in found.unchecked}
    if not made:
        return
    experiment = realism.compared_by(list(run.suite.planned.values()))
    kind, classifier = realism.resolve_extractor(experiment), None
    if kind == "model":
        of = run.suite.experiments[realism.feature_experiment(run.suite)]
        digests = {(task.experiment.method, task.experiment.seed): task.fits[-1].digest for task in runs}
        classifier = digests.get((of.method, of.seed))
    if kind == "none" or (kind == "model" and classifier is None):
        return
    extractor = realism.identify_extractor(experiment, classifier)
    for address in realism.comparisons(experiment, run.dataset.train, made, extractor):
        key = realism.place(address)
        found.look("realism", (key,), partial(read_record, run.store, key))
