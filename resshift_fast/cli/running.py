"""Running what `restore` was asked for: checked and planned before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resshift_fast.cli import console, faces, reporting, several
from resshift_fast.cli.plan import Job, Tally, plan_jobs, refuse_originals
from resshift_fast.cli.request import Request, environment, load
from resshift_fast.core.claims import announced
from resshift_fast.core.files import expand_home, make_folder
from resshift_fast.images.search import search

if TYPE_CHECKING:
    from resshift_fast.images.fitting import Fitting
    from resshift_fast.models.catalog import ModelSpec


def run(request: Request, tally: Tally) -> int:
    """Plan, load and restore; returns the exit code."""
    from resshift_fast.images.codecs import ImageError
    from resshift_fast.models import catalog
    from resshift_fast.weights.checkpoints import CheckpointError

    try:
        with environment(request):
            spec = catalog.get(request.model)
            _check(request, spec)
            fitting = _fitting(request, spec)
            if request.ray is not None:
                from resshift_fast.cli import cluster  # late, as it imports the readers of videos

                cluster.restore(request, tally, fitting)
            elif jobs := _jobs_to_do(request, tally, fitting):
                _restore(jobs, request, tally, fitting)
    except Exception as error:
        console.report(error)
        _say_what_is_left_out(tally, request)
        is_usage = isinstance(error, (ValueError, TypeError)) and not isinstance(error, (CheckpointError, ImageError))
        return 2 if is_usage else 1
    _say_what_is_left_out(tally, request)
    console.say(f"{tally}; {tally.stopped}" if tally.stopped else str(tally))
    return 1 if tally.failed else 0


def _check(request: Request, spec: ModelSpec) -> None:
    """Raise, before anything is written, what would fail with every photo."""
    from resshift_fast.diffusion.noise import check_seed

    check_seed("--seed", request.options["seed"])
    mask = request.naming["mask"]
    if spec.needs_mask and mask is None:
        raise ValueError(f"{spec.name} is an inpainting model and needs a mask; give --mask FILE or --mask FOLDER")
    if mask is not None and not spec.needs_mask:
        raise ValueError(f"{spec.name} takes no mask; leave --mask out, or use an inpainting model")
    try:
        spec.plan_tiles(1, 1, request.options["tile"], request.options["overlap"])
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    if request.faces is not None:
        faces.check(request.faces, spec)


def _fitting(request: Request, spec: ModelSpec) -> Fitting:
    from resshift_fast.images import results
    from resshift_fast.images.fitting import Fitting

    found = dict(request.fitting)
    wanted = found["wanted_scale"]
    if wanted is not None and wanted > spec.scale:
        raise ValueError(f"--scale is {wanted:g}, but {spec.name} enlarges {spec.scale} times; give at most that")
    try:
        if found["background"] is not None:
            found["background"] = results.colour(found["background"])
    except ValueError as error:
        raise ValueError(f"--background: {error}") from None
    return Fitting(spec.scale, **found)


def _jobs_to_do(request: Request, tally: Tally, fitting: Fitting) -> list[Job]:
    """The jobs to run; inputs that were not found are reported and counted as failed."""
    found = search(request.patterns, expand_home(request.out), recursive=request.recursive, videos=True)
    inputs, problems = found.files, found.problems
    one_given = len(inputs) == 1 and not problems
    names = {"one_given": one_given, "roots": found.roots, **request.naming}
    jobs = plan_jobs(inputs, request.out, **names) if inputs else []
    for problem in problems:
        console.report(problem)
        _print_json(request, status="failed", error=console.explain(problem))
    tally.left_out = found.left_out
    todo = jobs
    if request.skip_existing and jobs:
        from resshift_fast.cli.batch import is_done

        todo = [job for job in jobs if not is_done(job, fitting)]
        for job in jobs:
            if job not in todo:
                _print_json(request, input=str(job.source), status="skipped", reason="its result exists")
    tally.failed, tally.skipped, tally.total = len(problems), len(jobs) - len(todo), len(todo)
    return todo


def _print_json(request: Request, **fields: object) -> None:
    if request.as_json:
        reporting.print_json(**fields)


def _say_what_is_left_out(tally: Tally, request: Request) -> None:
    for reason, paths in tally.left_out.items():
        for path in paths:
            _print_json(request, input=str(path), status="left out", reason=reason)
        console.say(reporting.left_out(len(paths), list(map(str, paths[: reporting.MOST_NAMES])), reason))


def _restore(jobs: list[Job], request: Request, tally: Tally, fitting: Fitting) -> None:
    # What cannot be written is reported before a download of minutes.
    for folder in dict.fromkeys(job.output.parent for job in jobs):
        refuse_originals(jobs, make_folder(folder))
    folder = jobs[0].output.parent if jobs[0].exact else expand_home(request.out)
    with announced(folder, _settings(request), (job.place for job in jobs)) as differences:
        if differences:
            raise ValueError(
                f"another run restores some of these photos into {folder}, with {', '.join(differences)}; wait for it, "
                "or choose another output folder"
            )
        _restore_writable(jobs, request, tally, fitting)


def _settings(request: Request) -> dict[str, str]:
    """All that results depend on, but for rounding errors, by the names of the options."""
    found = {"model": request.model, "dtype": request.loading["dtype"]}
    found |= {name.replace("_", "-"): value for name, value in request.fitting.items()}
    found |= {"scale": found.pop("wanted-scale"), "8-bit": found.pop("eight-bits")}
    found |= {"format": request.naming["suffix"], "compare": request.naming["compare"]}
    found |= {name: request.options[name] for name in ("seed", "tile", "overlap", "noise")}
    for name, path in (*request.files.items(), ("mask", request.naming["mask"])):
        found[name] = path and expand_home(path).name
    if request.faces is not None:
        found |= {"faces": "yes"} | request.faces.given
    return {name: str(value) for name, value in found.items()}


def _restore_writable(jobs: list[Job], request: Request, tally: Tally, fitting: Fitting) -> None:
    """Load the model, and restore the photos whose outputs can be written."""
    from resshift_fast.cli.batch import Batch, check_targets, prepare

    report = reporting.Report(request.as_json)
    writable, prepared = [], None
    for job in jobs:
        try:
            faces.check_kind(request.faces, job.source, job.is_video)
            check_targets(job)
            if job.exact:  # the only one, so its pixels may stay in memory
                prepared = prepare(job, fitting)
            writable.append(job)
        except Exception as error:
            report.failed(job, error)
            tally.failed += 1
    if len(writable) > 1 and len(request.devices) > 1:
        several.restore(writable, request, tally, fitting)
    elif writable:
        pipe, restorer = load(request, *request.devices[:1])
        Batch(pipe, writable, request.options, tally, fitting, report, restorer).run(prepared)
