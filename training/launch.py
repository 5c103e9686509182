"""What both training scripts have in common: their flags, and what comes before a run."""

import contextlib
import sys
from pathlib import Path

import cli

import checkpoint
import utils


def add_flags(parser, table, epochs, samples, evaluated):
    """Give a parser the flags of every run, and those of a table of settings.

    The texts say how long a run is by default, what it draws and what it measures.
    """
    count, add = cli.number(int, 1, 10**9), parser.add_argument
    add("--dataset", metavar="DIR", required=True, help="folder of images, searched in all subfolders")
    add("--epoch", type=count, help=f"epochs in all, those before a resume included ({epochs})")
    add("--sample_dir", metavar="DIR", default="samples", help=f"where {samples} go (%(default)s)")
    add("--log_dir", metavar="DIR", default="logs", help="where TensorBoard's record goes (%(default)s)")
    add("--cache_mb", type=cli.number(int, 0), metavar="MB", default=1024, help="memory for images (%(default)s)")
    add("--eval_every", type=count, metavar="N", help=f"evaluate {evaluated} every N steps too (at epochs' ends)")
    add("--jit_compile", action="store_true", help="compile the step with XLA: for one GPU; slows a CPU down tenfold")
    add("--join_timeout", type=count, metavar="S", default=300, help="seconds to wait for other machines (%(default)s)")
    add("--deterministic", action="store_true", help="bitwise identical results, where TensorFlow can; slower")
    group = parser.add_argument_group("settings kept with the weights", "a resumed run keeps those not given")
    checkpoint.add_settings(group, table)


def part_settings(args, folder, table, script):
    """The architecture of a model, and the settings of a run of `script`, which learns for it into `folder` beside it.

    The settings of a table are the flags given, then those kept in the folder, then the defaults. Raises UserError if
    the folder cannot be resumed.
    """
    checkpoint.choose(args.checkpointDir)
    architecture, saved = checkpoint.read_config(args.checkpointDir)["architecture"], {}
    if checkpoint.find(folder):
        config = checkpoint.read_part_config(folder, architecture, script)
        saved = {"precision": "float32"} | config["training"]
        if config["weights"] != "float32":
            what = {checkpoint.ENCODER: "an encoder", checkpoint.REFINER: "a refiner"}[Path(folder).name]
            raise cli.UserError(
                f"{folder}: holds {what} without the state of its training; copy the model without it to another "
                "--checkpointDir, and train one there"
            )
    training = checkpoint.settings(args, table, saved)
    checkpoint.check_precision(folder, saved.get("precision"), training["precision"], f"remove {folder}")
    return architecture, training


@contextlib.contextmanager
def workers(args, place, folder, flag, samples=None):
    """Yield the `Team` that trains together into `folder`, which `flag` names, once all have met.

    The chief locks the folder, and checks that no pictures of a run called `samples` are there. Raises UserError where
    that fails, if memory or the disk is full inside, or if a worker is lost.
    """
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line at once, and keeps it if we are killed
    if not Path(args.dataset).is_dir():
        why = "is a file" if Path(args.dataset).exists() else "no such directory"
        raise cli.UserError(f"--dataset {args.dataset}: {why}; give a folder of images")
    utils.check_outside(args.sample_dir, "--sample_dir", [args.dataset])
    with contextlib.ExitStack() as stack:
        if place.index == 0:
            for name, path in ((flag, folder), ("--sample_dir", args.sample_dir), ("--log_dir", args.log_dir)):
                utils.make_directory(path, name)
            stack.enter_context(checkpoint.lock(folder, flag))
            if samples:
                utils.check_samples(args.sample_dir, samples)
        with cli.quiet_tensorflow():
            import ops
            from training.workers import join

            team = join(place, args.join_timeout)
            device = ops.use_device(args.deterministic)
        print(device)
        stack.enter_context(ops.memory_and_disk("--batch_size, --cache_mb, --log_dir"))
        stack.enter_context(team.report_lost_workers(folder))
        yield team
