"""The command line: LightningCLI in subclass mode, with our tracking, resume and errors."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lit_metarl.algorithms
import lit_metarl.callbacks
import lit_metarl.data  # noqa: F401 - imported classes can be named without their module path
from lit_metarl.callbacks.tracking import SLURM_JOB, RunRecord
from lit_metarl.checkpoint import CheckpointError, read_checkpoint
from lit_metarl.config import compose_arguments
from lit_metarl.errors import explain
from lit_metarl.settings import Seed, check_trainer
from lit_metarl.tracking import find_runs, has_run
from lit_metarl.tracking.logger import OF_CHECKPOINT, mlflow_logger
from lit_metarl.types import ConfigError, require

log = logging.getLogger(__name__)

RESUMABLE = ("last", "best")
OTHERS = "(lightning|torch|jsonargparse|mlflow|sqlalchemy|alembic|gymnasium|dm_control|mujoco|google|matplotlib)"
SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")
OF_SIMULATOR = ("obs_dim", "action_dim", "num_actions", "context_dim", "action_scale")
"""Arguments of a module that its DataModule knows."""
HELP = {
    "ckpt_path": "checkpoint to go on from: last or best (of the newest run of this algorithm, environment and seed in "
    "this experiment), the id of a run (its last.ckpt), or a file",
    "weights_only": argparse.SUPPRESS,
}
TITLES = {
    "help": "options",
    "checkpoint": "checkpoint",
    "model": "algorithm (--model.help CLASS lists its settings)",
    "data": "simulator and experience (--data.help CLASS lists its settings)",
    "trainer": "Trainer",
}


class Parser(LightningArgumentParser):
    """The stock parser with one-line errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and exit with 2 (within another parser: leave it to that one)."""
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"lit-metarl: error: {explain(message, self._option_string_actions)}\n")
        sys.stderr.write("`lit-metarl COMMAND --help` lists the options, `--model.help CLASS` those of a class.\n")
        sys.exit(2)


class CLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` from the signatures of the classes that a config names."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,  # it asserts a log_dir that an SQLite store has not; RunRecord logs the config
            seed_everything_default=0,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            parser_kwargs={"prog": "lit-metarl"},
            trainer_defaults={
                "inference_mode": False,  # adaptation at test time needs gradients
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
            args=None if args is None else list(args),
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The stock parser with our own options, and their meaning here, before the Trainer's."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"lit-metarl {subcommand} --config FILE [--ckpt_path last] [--KEY VALUE …]"
        for action in parser._actions:
            action.help = HELP.get(action.dest, action.help)
        # The links are all ours, and a group without options has nothing to show.
        shown = [g for g in parser._action_groups if g._group_actions and g.title != "Linked arguments"]
        groups = {group._group_actions[0].dest.partition(".")[0]: group for group in shown}
        groups["checkpoint"] = shown[-1]  # what the Trainer's method takes
        for name, title in TITLES.items():
            groups[name].title, groups[name].description = title, None
        parser._action_groups = [groups[name] for name in TITLES]
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--seed_everything``, whose values the stock version does not check."""
        parser.add_argument(
            "--seed_everything",
            type=Seed(),
            default=self.seed_everything_default,
            help="seed of every random stream, or true to draw one",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the module's dimensions to the simulator, and every random stream to one seed."""
        for name in OF_SIMULATOR:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the stock version lets a checkpoint's hyper-parameters override the command line, silently."""

    @property
    def settings(self) -> Any:
        """The parsed options of the sub-command."""
        return self.config[self.subcommand]

    @property
    def whole_config(self) -> dict[str, Any]:
        """Every option of the sub-command as a run records it, defaults included; mappings, lists and primitives."""
        text = self.parser.dump(self.config, format="yaml", skip_link_targets=False, skip_unset=False)
        return yaml.safe_load(text)[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Resolve and check ``ckpt_path``, so that a bad one fails before a simulator is built."""
        # Precision also in Algorithm.setup; but on a CPU the Trainer turns fp16 into bf16 without a word.
        check_trainer(self.settings.trainer, self.subcommand == "fit")
        self.settings.weights_only = True
        name = self.settings.get("ckpt_path")
        if self.subcommand == "fit" and (requeued := self._requeued_checkpoint()):
            name = requeued
        if not name:
            if self.subcommand != "fit":
                raise CheckpointError(f"{self.subcommand} needs a policy: --ckpt_path last, best, a run id or a file.")
            return
        path = self.resolve_checkpoint(str(name))
        run_id = read_checkpoint(path).get("run", {}).get("run_id")
        self.settings.ckpt_path = str(path)
        self._choose_run(run_id)

    def _choose_run(self, run_id: str | None) -> None:
        """Go on in the checkpoint's run, unless another is asked for or it is not in this store."""
        trainer = self.settings.trainer
        if not self._logger_class().endswith("MLflowLogger"):
            return
        given = trainer.logger.init_args
        root = self._logger_arguments()["root"]
        if given.get("run_id") not in (None, OF_CHECKPOINT):
            return
        if given.run_id == OF_CHECKPOINT and run_id is not None and has_run(root, run_id):
            given.run_id = run_id
        elif self.subcommand == "fit":
            log.warning("the checkpoint's run %s is not gone on with: training continues in a new run", run_id)
        else:
            log.warning("the checkpoint's run %s is not in %s: nothing is recorded", run_id, root)
            trainer.logger = False

    def resolve_checkpoint(self, name: str) -> Path:
        """``last`` and ``best`` of the newest run of this algorithm, environment and seed, ``<run id>``, or a file.

        Raises:
            CheckpointError: no such run has that checkpoint.
        """
        arguments = self._logger_arguments()
        runs = Path(arguments["root"]).expanduser() / "runs"
        if name in RESUMABLE:
            path = self._newest(f"{name}.ckpt", {})
            if path is None:
                raise CheckpointError(
                    f"ckpt_path = {name}: no run of {self._algorithm} with seed {self.settings.seed_everything} on "
                    f"this environment in experiment {arguments['experiment_name']!r} of {arguments['root']} has a "
                    f"{name}.ckpt. Drop --ckpt_path to start a new run."
                )
            return path
        if re.fullmatch("[0-9a-f]{32}", name) and not Path(name).exists():
            if not (runs / name).is_dir():
                raise CheckpointError(f"ckpt_path = {name}: no run with this id has a checkpoint in {runs}.")
            return runs / name / "last.ckpt"
        return Path(name).expanduser()

    def _requeued_checkpoint(self) -> Path | None:
        """Last checkpoint of the run that this SLURM job trained before it was put back into the queue."""
        job = os.environ.get("SLURM_JOB_ID")
        if job is None or int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
            return None
        return self._newest("last.ckpt", {SLURM_JOB: job})

    def _newest(self, file: str, tags: dict[str, str]) -> Path | None:
        """Checkpoint ``file`` of the newest run of this algorithm, environment and seed that carries ``tags``."""
        arguments = self._logger_arguments()
        root = Path(arguments["root"]).expanduser()
        env = self.whole_config["data"]["init_args"]["env"]
        tags = {"algorithm": self._algorithm, "seed": str(self.settings.seed_everything)} | tags
        without = []
        for run_id in find_runs(root, arguments["experiment_name"], tags):
            path = root / "runs" / run_id / file
            if not path.is_file():
                without.append(run_id)
                continue
            config = yaml.safe_load(read_checkpoint(path, verify=False)["run"]["config"])
            if config.get("data", {}).get("init_args", {}).get("env") == env:
                if without:
                    log.warning("newer runs have no %s: %s; it is taken from %s", file, ", ".join(without), run_id)
                return path
        return None

    @property
    def _algorithm(self) -> str:
        return self.settings.model.class_path.rpartition(".")[2]

    def _logger_class(self) -> str:
        logger = self.settings.trainer.logger
        return str(logger.get("class_path", "")) if hasattr(logger, "get") else ""

    def _logger_arguments(self) -> dict[str, Any]:
        logger = self.settings.trainer.logger
        given = logger.get("init_args", {}) if hasattr(logger, "get") else {}
        return {"root": "mlruns", "experiment_name": "lit_metarl"} | {
            key: value for key, value in dict(given).items() if value is not None
        }

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Check the store before anything is trained, and record the config."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ValueError as error:  # a TypeError is a fault of somebody's code, and keeps its traceback
            raise ConfigError(f"trainer: {error}") from error
        trainer.callbacks.append(RunRecord(self.whole_config, str(self.subcommand)))
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.check()
        return trainer


class Resolver(CLI):
    """Complete configs of ``fit``, from the signatures of what they name; nothing is built."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Nothing yet: each call has its own."""
        self.config = {"subcommand": None}

    def _set_seed(self) -> None:
        """Nothing: no random number is drawn."""

    def before_instantiate_classes(self) -> None:
        """Nothing, as nothing is instantiated."""

    def instantiate_classes(self) -> None:
        """Nothing."""

    def __call__(self, config: Mapping[str, Any], flags: Sequence[str] = ()) -> dict[str, Any]:
        """Every option of ``fit --config <config> <flags>`` as a config: with defaults, without what links set.

        Raises:
            ConfigError: Trainer options that cannot work; the parser itself exits with 2 and one line.
        """
        self.config = self.parser.parse_args(["fit", "--config", yaml.safe_dump(dict(config)), *flags])
        self.subcommand = "fit"
        check_trainer(self.settings.trainer, True)
        return yaml.safe_load(self.parser.dump(self.config, format="yaml", skip_unset=False))["fit"]


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and run the sub-command they name.

    Raises:
        ConfigError, CheckpointError, EnvError, TrackingError: bad input; the message names it and the remedy.
    """
    quieten()
    CLI(compose_arguments(arguments))


def completion(shell: str) -> None:
    """Print the completion script of ``shell`` for fit, validate, test and predict, and exit; or help.

    Raises:
        ConfigError: no such shell.
    """
    if shell in ("--help", "-h"):
        shells = ",".join(SHELLS)
        sys.stdout.write(f"usage: lit-metarl completion {{{shells}}}\n\nPrint the completion script of a shell.\n")
        return
    require(shell in SHELLS, "completion", shell, f"choose one of {', '.join(SHELLS)}")
    quieten()
    warnings.filterwarnings("ignore", message="(?s).*Hit failing import")  # of types that no option has
    set_parsing_settings(add_print_completion_argument=True)
    CLI(["--print_completion", f"shtab-{shell}"])


def quieten() -> None:
    """Drop what others deprecate among themselves and what is so by design; everything else is shown."""
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=OTHERS)
    for message in (
        "The 'train_dataloader' does not have many workers",  # loaders are plain iterables over live simulators
        "The 'val_dataloader' does not have many workers",
        "Trying to infer the `batch_size`",
        "`LightningCLI`'s args parameter is intended",
        "LightningCLI's args parameter is intended",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    logging.getLogger("absl").setLevel(logging.ERROR)  # deprecated attributes of dm_control's own model files
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)


NOISE = ("`max_epochs=", "Tip:", "litlogger", "GPU available", "TPU available", "HPU available")


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(noise in text for noise in NOISE)
