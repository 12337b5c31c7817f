"""Command line: flags, distributed start, dispatch. All else can be imported from a notebook.

python -m selfexplain_jax.main --config=configs/synthetic.py
python -m selfexplain_jax.main --config=configs/synthetic.py --config.train.steps=500 --workdir=runs/short
python -m selfexplain_jax.main --config=configs/synthetic.py --mode=evaluate
python -m selfexplain_jax.main --config=configs/synthetic.py --mode=explain --images=photos/
python -m selfexplain_jax.main --mode=report --workdir=runs/synthetic
"""

from __future__ import annotations

import contextlib
import difflib
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from selfexplain_jax import benchmark, compare, evaluate, explain, report
from selfexplain_jax import compile as compile_check
from selfexplain_jax.config import default_workdir, load_config
from selfexplain_jax.folders import open_folder
from selfexplain_jax.training import loop
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.checkpoint import check_writable
from selfexplain_jax.training.state import make_predictor
from selfexplain_jax.types import UserError

MODES = ("train", "evaluate", "explain", "report", "compile", "benchmark")
LEAVE_SECONDS = 3.0
"""A process that an error ends waits so long for others that it ends too."""


def define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags there are, not parsed yet. They belong to this call alone, so a notebook may call `run` many times."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The experiment: a file of configs/, or file:variant. --config.train.steps=10 overrides one of its fields.",
        flag_values=values,
        sys_argv=list(argv),
    )
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/NAME or runs/NAME_VARIANT.", **define)
    flags.DEFINE_enum("mode", "train", MODES, "train goes on where an earlier run of that folder stopped.", **define)
    flags.DEFINE_list(
        "images", [], "--mode=explain, benchmark: photos or folders of them, separated by commas.", **define
    )
    flags.DEFINE_list("classes", [], "--mode=explain: classes to show, name or number (those predicted).", **define)
    flags.DEFINE_string(
        "what",
        "all",
        "--mode=benchmark: pipeline, train, all (both), explain, attribution, metrics, memory, curves, backbone, "
        "time_to_masks.",
        **define,
    )
    flags.DEFINE_string("json", "", "--mode=benchmark: file for the results (in --workdir).", **define)
    flags.DEFINE_string("peers", "", "--mode=benchmark: Python with other implementations.", **define)
    flags.DEFINE_string(
        "topology", "", "--mode=compile: TPUs that need not be here, such as v5e:16x16 (docs/scaling.md).", **define
    )
    flags.DEFINE_list("runs", [], "--mode=report: folders of more runs, for the spread over their seeds.", **define)
    flags.DEFINE_string("coordinator_address", None, "Many processes: host:port of process 0, or auto.", **define)
    flags.DEFINE_integer("num_processes", None, "Many processes: how many.", **define)
    flags.DEFINE_integer("process_id", None, "Many processes: number of this one, from 0.", **define)
    flags.DEFINE_boolean("help", False, "Shows this.", short_name="h", **define)
    return values


def run(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit code: 0, 1 for bad input, 130 or 143 when stopped.

    An error in one of several processes ends that process here and does not return.
    """
    try:
        values = parse_flags(list(sys.argv if argv is None else argv))
        if values.help:
            print(f"{__doc__}\nFlags:{values.get_help()}")
            return 0
        if values.mode == "report":
            report_and_say(values.workdir or default_workdir(values["config"].config_filename), values.runs)
            return 0
        keep_compiled_programs()
        if values.topology:
            if values.mode != "compile":
                raise UserError(f"--topology={values.topology} is for --mode=compile: it names devices to compile for.")
            # A library for TPUs that is installed would else be asked for a TPU, which need not be here.
            jax.config.update("jax_platforms", "cpu")
        if values.num_processes is None and values.coordinator_address is None:
            mesh_lib.split_cpu(values.config.train.batch_size)
        mesh_lib.distributed_start(values.coordinator_address, values.num_processes, values.process_id)
        dispatch(values)
    except loop.Stopped as stopped:
        tell(stopped)
        if stopped.compiling:
            # An ordinary end would take what the compiler still works with from under it.
            os._exit(stopped.exit_code)
        return stopped.exit_code
    except (Exception, KeyboardInterrupt) as error:
        text, code = what_ended(error)
        if not jax.distributed.is_initialized():
            if text is None:
                raise
            tell(text)
            return code
        tell("".join(traceback.format_exception(error)).rstrip() if text is None else text)
        leave(code)
    return 0


def what_ended(error: BaseException) -> tuple[str | None, int]:
    """What the user is told of an error that ends the run, None where it is a bug to trace, and the exit code."""
    if isinstance(error, UserError):
        return f"error: {error}", 1
    if isinstance(error, OSError) and error.errno is not None:
        # A folder that vanished, a full disk, a file in the place of a folder: the user's to mend, and no bug to trace.
        where = f" {error.filename}" if error.filename else ""
        return f"error: Cannot read or write{where}: {error.strerror}. What was saved before is kept.", 1
    if isinstance(error, KeyboardInterrupt):
        return "Stopped by Ctrl-C.", 130
    # Where numbers are fetched, JAX makes a ValueError of what the other end of a collective answers, or does not.
    answer = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", str(error))
    answer = answer or isinstance(error, jax.errors.JaxRuntimeError)
    if answer and jax.distributed.is_initialized() and jax.process_count() > 1:
        return (
            f"error: Another process of this run has ended or does not answer ({_first_line(error)}). What was saved "
            "before is kept: start all processes again."
        ), 1
    return None, 1


def tell(text: object) -> None:
    """Prints to stderr where somebody still listens: a connection that is gone must not keep a process from ending."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def leave(code: int) -> None:
    """Ends this process of several, without the wait of minutes for the others that an ordinary end would be.

    They cannot go on alone: JAX tells them that this one is gone. Those that end as well, for the same reason, are
    waited for, so that each can say it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()

    def together():
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()

    waiting = threading.Thread(target=together, daemon=True)
    waiting.start()
    waiting.join(LEAVE_SECONDS)
    os._exit(code)


def dispatch(values: flags.FlagValues) -> None:
    """Runs what --mode names.

    Raises:
      UserError: bad input of any kind.
      Stopped: a signal ended the training, which is saved.
    """
    config, workdir = values.config, values.workdir or default_workdir(values["config"].config_filename)
    if values.mode == "train" and len(config.comparison.methods):
        raise UserError("This config compares what was trained: add --mode=evaluate.")
    if values.mode == "train":
        result = loop.train(config, workdir)
        if config.train.evaluate:
            evaluate_and_write(config, workdir, result)
    elif values.mode == "evaluate" and len(config.comparison.methods):
        compare_and_write(config, workdir)
    elif values.mode == "evaluate":
        evaluate_and_write(config, workdir, loop.restore(config, workdir))
    elif values.mode == "explain":
        if not values.images:
            raise UserError("--mode=explain needs --images=PHOTO_OR_FOLDER[,ANOTHER...].")
        explain_photos(config, workdir, loop.restore(config, workdir), values.images, values.classes)
    elif values.mode == "compile":
        compile_check.compile_step(config, workdir, values.topology)
    else:
        benchmark.run(config, workdir, values.what, images=values.images, peers=values.peers, json_path=values.json)


def evaluate_and_write(config: ml_collections.ConfigDict, workdir: str, result: loop.TrainResult) -> None:
    """Evaluates a trained network, writes results.json, pictures and the report to WORKDIR, and says where they are."""
    end_at_sigterm()
    folder = open_folder(workdir)
    predictor = make_predictor(config, result.dataset.info, result.model, result.state, result.classifier)
    first = jax.process_index() == 0
    if first:
        # Before the minutes that the evaluation takes, not behind them.
        check_writable(folder / "pictures")
    metrics = evaluate.evaluate(
        predictor, result.dataset, config, pictures_dir=folder / "pictures", examples_dir=folder
    )
    if first:
        extra = {"steps": result.step, "train_seconds": result.train_seconds}
        evaluate.write_results(folder / "results.json", config, metrics, extra=extra)
        print(f"Results: {folder / 'results.json'}\nPictures: {folder / 'pictures'}")
        report_and_say(workdir)


def compare_and_write(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Compares the methods of `config.comparison`; writes comparison.json, a figure and the report, and says where."""
    end_at_sigterm()
    folder = open_folder(workdir)
    check_writable(folder / "pictures")
    results = compare.compare(config, folder)
    if jax.process_index() > 0:
        return
    evaluate.write_results(folder / "comparison.json", config, {}, extra=results)
    table = report.comparison_markdown(results)
    print(f"{table}\nComparison: {folder / 'comparison.json'}, .md, .csv, .tex\nPictures: {folder / 'pictures'}")
    report_and_say(workdir)


def end_at_sigterm() -> None:
    """Lets SIGTERM end a process of several at once, as it ends a run of one.

    JAX catches it there, for trainings that stop at a common step; what else runs asks for no such step, and would go
    on until it is killed. What a comparison has found so far is on the disk.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if os.getpid() == 1:
        # The first process of a container, for which the kernel drops a signal that nobody handles.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    elif jax.process_count() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def report_and_say(workdir: str, runs: Sequence[str] = ()) -> None:
    """Writes WORKDIR/report.html and the tables beside it from what is there, and says where."""
    page, *_ = report.write_report(workdir, runs)
    print(f"Report: {page}")


def explain_photos(
    config: ml_collections.ConfigDict,
    workdir: str,
    result: loop.TrainResult,
    images: Sequence[str],
    classes: Sequence[str] = (),
) -> None:
    """Explains photos with a trained network; writes WORKDIR/explained and says so."""
    end_at_sigterm()
    predictor = make_predictor(config, result.dataset.info, result.model, result.state, result.classifier)
    output_dir = open_folder(workdir) / "explained"
    check_writable(output_dir)
    explain.explain_folder(predictor, config, images=images, output_dir=output_dir, classes=classes)
    if jax.process_index() == 0:
        print(f"Explanations: {output_dir}")


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags with the values of a command line.

    Raises:
      UserError: an unknown flag or config field (the message names the nearest one), a value of the wrong type, a
        config that is missing or fails.
    """
    values = define_flags(argv)
    spec = _value_of(argv, "config")
    if spec is not None:
        check_fields(argv, _load(spec))
    try:
        rest = values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{_first_line(error)} See --help.") from error
    # Libraries with absl flags of their own refuse to work before somebody has parsed them.
    flags.FLAGS.mark_as_parsed()
    if spec is None and not values.help and not (values.mode == "report" and values.workdir):
        raise UserError("--config is missing: name an experiment, for instance --config=configs/synthetic.py.")
    if len(rest) > 1:
        raise UserError(f"Do not know what to do with {' '.join(rest[1:])}: every argument is a flag, --name=value.")
    return values


def check_fields(argv: Sequence[str], config: ml_collections.ConfigDict) -> None:
    """Holds every --config.FIELD of the command line against the config.

    Raises:
      UserError: there is no such field; names the nearest.
    """
    known = _field_names(config)
    for argument in argv[1:]:
        if argument == "--":
            return
        name, dashes = argument.lstrip("-").partition("=")[0], argument.startswith("-")
        if not dashes or not name.startswith("config.") or name.removeprefix("config.") in known:
            continue
        nearest = difflib.get_close_matches(name.removeprefix("config."), known, n=1, cutoff=0.0)
        raise UserError(
            f"There is no field --{name}. The nearest one is --config.{nearest[0]}. (Terms of the objective and "
            "options of the dataset can be overridden if the config file names them.)"
        )


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs for the next process, in ~/.cache unless JAX_COMPILATION_CACHE_DIR is set."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "selfexplain_jax" / "jax"))


def _load(spec: str) -> ml_collections.ConfigDict:
    try:
        return load_config(spec)
    except UserError:
        raise
    except Exception as error:
        # A config file is the user's own code: any kind of error may come out of it.
        raise UserError(f"Config {spec} fails with {type(error).__name__}: {_first_line(error)}") from error


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    """The last value of --flag=value or --flag value."""
    value = None
    for argument, following in zip(argv[1:], [*argv[2:], None], strict=True):
        if argument == "--":
            break
        name, equals, given = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            value = given if equals else following
    return value


def _field_names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        names.append(prefix + key)
        if isinstance(value, ml_collections.ConfigDict):
            names += _field_names(value, f"{prefix}{key}.")
    return names


def _first_line(error: Exception) -> str:
    """What an error says, in one line; ml_collections puts the name of the nearest field into the last one."""
    text = str(error.args[0]) if isinstance(error, KeyError | AttributeError) and error.args else str(error)
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()] or [type(error).__name__]
    first = lines[0].split(" Other fields present:")[0]
    hint = [line for line in lines[1:] if line.startswith("Did you mean")]
    return " ".join(part if part.endswith((".", "?")) else part + "." for part in [first, *hint])


if __name__ == "__main__":
    sys.exit(run())
