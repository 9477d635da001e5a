"""The service's settings, each defined once: a field of ServeConfig is a flag, a variable and a TOML key.

Owns names, defaults, allowed values and precedence (flag > variable > file > default). Does not act on any of
them, and reads neither the environment nor a file unless `load` is called.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import click

from longshort_service import option_kinds as kinds

Command = TypeVar("Command", bound=Callable[..., Any])

PREFIX: Final = "LONGSHORT_"
CONFIG_VARIABLE: Final = "LONGSHORT_CONFIG"
DAY_S: Final = 86400.0
# Kubernetes gives every container these for a Service named `longshort`; they are no settings of ours. The
# last is the test suite's switch, which the services that it starts inherit.
_FOREIGN_VARIABLES: Final = re.compile(
    r"LONGSHORT_(SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_\d+_.*|REQUIRE_ALL)"
)


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names its source and what is allowed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Every setting of `longshort serve`: its kind of value, its meaning, its default. `_s` is seconds."""

    repository: Annotated[
        Path | None, kinds.FOLDER, "Models, <name>/<version>/model.onnx; else the shipped."
    ] = None
    repository_watch_s: Annotated[
        float, kinds.TIME_OR_ZERO, "Pause between looks for new models; 0: only ReloadModels looks."
    ] = 10.0
    host: Annotated[str, kinds.HOST, "Address that both ports listen on; 0.0.0.0 is every one."] = "127.0.0.1"
    grpc_port: Annotated[int, kinds.PORT, "Port of the gRPC service; 0 takes any free one."] = 50051
    metrics_port: Annotated[int, kinds.PORT, "Port of /metrics, /healthz, /readyz; 0 takes a free one."] = (
        9464
    )
    store: Annotated[str, kinds.STORE, "Where sessions are kept: sqlite://, redis://... or memory://."] = (
        "sqlite://"
    )
    durability: Annotated[str, kinds.DURABILITY, "What a session has whose opening names no durability."] = (
        "behind"
    )
    checkpoint_interval_s: Annotated[float, kinds.TIME, "BEHIND is stored at least so often."] = 1.0
    # Less than the 16,384 steps that our client keeps for a session.
    checkpoint_steps: Annotated[int, kinds.STEPS, "BEHIND is at most so many steps behind."] = 8192
    unary_durability: Annotated[
        str, kinds.UNARY, "Unary steps: each stored before its answer, or as their session is."
    ] = "sync"
    sequence_mode: Annotated[
        str, kinds.SEQUENCES, "Open Inference sequences: as Triton has them, or each request once."
    ] = "triton"
    store_timeout_s: Annotated[float, kinds.TIME, "An answer waits so long for the store, then fails."] = 5.0
    store_outage_limit_s: Annotated[
        float, kinds.TIME_OR_ZERO, "Without their store live sessions go on for so long."
    ] = 60.0
    provider: Annotated[str, kinds.PROVIDER, "What onnxruntime computes on."] = "cpu"
    # More threads a run made small models slower on 2 cores; add replicas first.
    intra_op_num_threads: Annotated[int, kinds.THREADS, "Threads of one engine run."] = 1
    max_batch_rows: Annotated[int, kinds.ROWS, "Greatest number of sessions in one engine run."] = 2048
    max_steps: Annotated[int, kinds.STEPS, "Greatest number of steps in one message."] = 4096
    piece_steps: Annotated[int, kinds.STEPS, "Longer messages run in pieces of so many steps."] = 64
    # 100,000 states of a shipped model are 51 MB; with their bookkeeping well below 1 GB, where messages are short:
    # each session also keeps its last answer, 12 bytes a step with three outputs.
    max_sessions: Annotated[int, kinds.COUNT, "Most sessions in memory; then idle ones go to the store."] = (
        100_000
    )
    # What memory:// keeps of an idle session of a shipped model is about 1.5 kB.
    max_stored_sessions: Annotated[int, kinds.COUNT, "Most sessions kept in all; more are refused."] = (
        1_000_000
    )
    max_streams: Annotated[int, kinds.COUNT, "Most open streams; more are refused at once."] = 10_000
    # At 0.8 to 1.5 us a step of a small model this is one to two seconds of work.
    max_queued_steps: Annotated[int, kinds.COUNT, "Most steps waiting; more are refused at once."] = 1_048_576
    max_message_bytes: Annotated[int, kinds.SIZE, "Greatest gRPC message taken in."] = 4 << 20
    idle_timeout_s: Annotated[
        float, kinds.TIME, "Without a stream for so long: from memory to the store."
    ] = 300.0
    session_ttl_s: Annotated[float, kinds.TIME, "A session that nobody used for so long ends."] = 7 * DAY_S
    tombstone_ttl_s: Annotated[
        float, kinds.TIME, "For so long a session that has expired is known as such (SESSION_EXPIRED)."
    ] = 7 * DAY_S
    max_stream_age_s: Annotated[
        float, kinds.TIME_OR_ZERO, "Streams end after so long, for replicas to share anew; 0: never."
    ] = 0.0
    drain_timeout_s: Annotated[float, kinds.TIME_OR_ZERO, "What is in flight at SIGTERM has so long."] = 20.0
    inline_run_limit_s: Annotated[float, kinds.TIME_OR_ZERO, "Longer engine runs leave the loop."] = 0.002
    log_format: Annotated[str, kinds.LOG_FORMAT, "Form of log lines; auto: text on a terminal."] = "auto"
    log_level: Annotated[str, kinds.LOG_LEVEL, "Least level that is logged."] = "info"

    def __post_init__(self) -> None:
        """Refuse settings that contradict one another."""
        if self.grpc_port == self.metrics_port != 0:
            raise ConfigError(
                f"grpc_port and metrics_port are both {self.grpc_port}: give them different ports"
            )
        if self.max_queued_steps < self.max_steps:
            raise ConfigError(
                f"max_queued_steps is {self.max_queued_steps}: it must hold one of {self.max_steps} steps"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One setting as operators see it: the same thing under three names."""

    field: str
    kind: kinds.Kind
    help: str
    default: Any

    @property
    def key(self) -> str:
        """The TOML key: the field without its unit, since a duration carries its own."""
        return self.field.removesuffix("_s")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.key.upper()

    @property
    def flag(self) -> str:
        """The flag, or the argument's name where it is given by position."""
        return "--" + self.key.replace("_", "-")

    @property
    def default_text(self) -> str:
        """The default as a person would write it: 7d, 4MiB, 100000."""
        return "none" if self.default is None else self.kind.show(self.default)


def options() -> tuple[Option, ...]:
    """Return every setting in the order of the help text."""
    hints = get_type_hints(ServeConfig, include_extras=True)
    found = []
    for field in dataclasses.fields(ServeConfig):
        kind, meaning = hints[field.name].__metadata__
        found.append(Option(field.name, kind, meaning, field.default))
    return tuple(found)


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], toml_path: Path | None = None
) -> ServeConfig:
    """Join flags, environment and file to one configuration; ConfigError names the source of a bad value.

    `flags` maps field names to text as the command line gave it, None where it was not given. `toml_path` is
    what `--config` named; without it LONGSHORT_CONFIG may name the file. An empty variable counts as not set.
    """
    if toml_path is None and environ.get(CONFIG_VARIABLE):
        toml_path = Path(environ[CONFIG_VARIABLE])
    table = {} if toml_path is None else _read_toml(toml_path)
    known = {option.variable for option in options()} | {CONFIG_VARIABLE}
    for variable in (v for v in environ if v.startswith(PREFIX) and not _FOREIGN_VARIABLES.fullmatch(v)):
        if variable not in known:
            raise ConfigError(f"variable {variable}: no such setting{_nearest(variable, known)}")
    values: dict[str, Any] = {}
    for option in options():
        sources = (
            (option.flag, flags.get(option.field)),
            (f"variable {option.variable}", environ.get(option.variable) or None),
            (f"{toml_path}: key {option.key}", table.get(option.key)),
        )
        given = next(((source, raw) for source, raw in sources if raw is not None), None)
        if given is not None:
            source, raw = given
            try:
                values[option.field] = option.kind.read(raw)
            except ValueError as error:
                told = kinds.without_password(repr(raw))
                raise ConfigError(f"{source}: {told} will not do: give {error}") from None
    if values.get("store") == "memory://" and values.get("durability", "none") != "none":
        raise ConfigError(
            f"durability is {values['durability']}, but memory:// keeps nothing: take a durable store or leave "
            "--durability out"
        )
    return ServeConfig(**values)


def serve_options(command: Command) -> Command:
    """Add every setting to a click command, as keyword arguments named by field, and `config_path`.

    All arrive as text or None, to be judged by `load`, so that a bad flag reads like a bad variable or key.
    """
    for option in reversed(options()):
        if option.field == "repository":  # the one that is given by position
            command = click.argument(option.field, required=False)(command)
            continue
        shown = f"{option.help}  [{option.variable}; default {option.default_text}]"
        command = click.option(option.flag, option.field, metavar=option.kind.metavar, help=shown)(command)
    config_help = f"TOML file of settings.  [{CONFIG_VARIABLE}]"
    return click.option("--config", "config_path", type=Path, metavar="FILE", help=config_help)(command)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    known = {option.key for option in options()}
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: key {key}: no such setting{_nearest(key, known)}")
    return table


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; docs/configuration.md lists them"
