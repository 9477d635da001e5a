"""Settings: one definition, four sources, and errors that name the source."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from longshort_service.config import ConfigError, Option, ServeConfig, load, options, serve_options

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"
BY_FIELD = {option.field: option for option in options()}


def error_of(flags: dict[str, object], environ: dict[str, str], toml_path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, toml_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "longshort.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_any_source_the_defaults_hold():
    assert load({}, {}) == ServeConfig()
    assert load({"host": None}, {"PATH": "/bin", "LONGSHORT_HOST": ""}).host == "127.0.0.1"


def test_flag_goes_before_variable_before_file_before_default(tmp_path: Path):
    path = write(tmp_path, "max_steps = 3\ngrpc_port = 3\nmetrics_port = 3_000\n")
    config = load({"max_steps": "1"}, {"LONGSHORT_MAX_STEPS": "2", "LONGSHORT_GRPC_PORT": "2"}, path)
    assert (config.max_steps, config.grpc_port, config.metrics_port, config.max_streams) == (
        1,
        2,
        3000,
        10_000,
    )


def test_a_variable_may_name_the_file_and_the_flag_goes_before_it(tmp_path: Path):
    path = write(tmp_path, 'host = "::1"')
    assert load({}, {"LONGSHORT_CONFIG": str(path)}).host == "::1"
    environ = {"LONGSHORT_CONFIG": str(tmp_path / "other.toml")}
    assert load({}, environ, path).host == "::1"
    assert str(tmp_path / "other.toml") in error_of({}, environ)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("7d", 604800.0),
        ("20s", 20.0),
        ("300ms", 0.3),
        ("1.5h", 5400.0),
        ("2 m", 120.0),
        ("250us", 0.00025),
        ("12", 12.0),
        (12, 12.0),
        (0.25, 0.25),
        (2e-05, 2e-05),
    ],
)
def test_durations_are_numbers_of_seconds_or_carry_their_unit(written: object, seconds: float):
    assert load({"idle_timeout_s": written}, {}).idle_timeout_s == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("written", "num_bytes"), [("4MiB", 4194304), ("512 KiB", 524288), ("1GiB", 1 << 30), (2048, 2048)]
)
def test_sizes_are_bytes_or_carry_their_unit(written: object, num_bytes: int):
    assert load({"max_message_bytes": written}, {}).max_message_bytes == num_bytes


@pytest.mark.parametrize(
    "url",
    [
        *(
            "memory://",
            "sqlite://",
            "sqlite:///x.db",
            "sqlite:////var/lib/x.db",
            "redis://host",
            "redis://:p@host:1/2",
        ),
        *(
            "rediss://host?ssl_ca_certs=/ca.pem",
            "redis+sentinel://a:1,b:2/main",
            "rediss+sentinel://a/main/1",
        ),
    ],
)
def test_stores_are_urls(url: str):
    assert load({"store": f" {url}"}, {}).store == url


BAD = {
    "repository": [" ", 7],
    "repository_watch_s": ["often"],
    "host": ["  ", 7, True],
    "grpc_port": ["-1", "65536", "http", "1.0", 1.0, True, "", "٣", "9" * 5000],
    "metrics_port": ["70000"],
    "store": [
        *("memory", "memory://x", "", "sqlite", "sqlite://x.db", "redis://", "redis:host", "rediss:///0"),
        *("redis+sentinel://a:1,b:2", "valkey://host", "redis://ho st", 7),
    ],
    "durability": ["maybe", ""],
    "checkpoint_interval_s": ["0", "never"],
    "checkpoint_steps": ["0"],
    "unary_durability": ["behind"],
    "sequence_mode": ["kserve"],
    "store_timeout_s": ["0"],
    "store_outage_limit_s": ["-1"],
    "provider": ["tpu", "", 1],
    "intra_op_num_threads": ["0", "257"],
    "max_batch_rows": ["0"],
    "max_steps": ["0", "many"],
    "piece_steps": ["0"],
    "max_sessions": ["0", "1e6"],
    "max_stored_sessions": ["0", "1e6"],
    "max_streams": ["0"],
    "max_queued_steps": ["0"],
    "max_message_bytes": ["4MB", "1023", "2GiB", "-4MiB", True, "MiB"],
    "idle_timeout_s": ["0", "-1", "nan", "inf", "5 parsecs", "", "s", "1.2.3", True, "1d2h", "99999999999"],
    "session_ttl_s": ["0s"],
    "tombstone_ttl_s": ["0s"],
    "max_stream_age_s": ["never", "-1"],
    "drain_timeout_s": ["soon"],
    "inline_run_limit_s": ["-1ms"],
    "log_format": ["xml"],
    "log_level": ["loud"],
}


@pytest.mark.parametrize(("field", "raw"), [(field, raw) for field, many in BAD.items() for raw in many])
def test_bad_values_are_refused_in_one_line_that_names_the_flag_and_what_is_allowed(field: str, raw: object):
    message = error_of({field: raw}, {})
    assert message.startswith(f"{BY_FIELD[field].flag}: ")
    assert "give " in message


def test_every_setting_has_a_bad_value_above():
    assert set(BAD) == {field.name for field in dataclasses.fields(ServeConfig)}


def test_bad_values_name_the_variable_or_the_key_of_the_file(tmp_path: Path):
    assert error_of({}, {"LONGSHORT_GRPC_PORT": "x"}).startswith("variable LONGSHORT_GRPC_PORT: 'x'")
    path = write(tmp_path, "drain_timeout = [1]")
    assert error_of({}, {}, path).startswith(f"{path}: key drain_timeout: [1]")


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path):
    assert "did you mean LONGSHORT_GRPC_PORT?" in error_of({}, {"LONGSHORT_GRPCPORT": "1"})
    assert "did you mean session_ttl?" in error_of({}, {}, write(tmp_path, 'sesion_ttl = "1d"'))
    assert "docs/configuration.md" in error_of({}, {}, write(tmp_path, "zzz = 1"))


def test_what_kubernetes_says_of_a_service_of_our_name_is_no_setting():
    environ = {
        "LONGSHORT_SERVICE_HOST": "10.0.0.7",
        "LONGSHORT_SERVICE_PORT": "50051",
        "LONGSHORT_SERVICE_PORT_METRICS": "9464",
        "LONGSHORT_PORT": "tcp://10.0.0.7:50051",
        "LONGSHORT_PORT_50051_TCP_ADDR": "10.0.0.7",
    }
    assert load({}, environ) == ServeConfig()


@pytest.mark.parametrize("content", [b"grpc_port = ", b"\xff\xfe", b"[grpc]\nport = 1"])
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, content: bytes):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert error_of({}, {}, path).startswith(f"{path}: ")


def test_a_folder_for_a_file_is_refused_by_its_name(tmp_path: Path):
    assert error_of({}, {}, tmp_path).startswith(f"{tmp_path}: cannot be read")


def test_settings_that_contradict_each_other_are_refused():
    assert "different ports" in error_of({"grpc_port": "9464"}, {})
    assert load({"grpc_port": "0", "metrics_port": "0"}, {}).grpc_port == 0
    assert "max_queued_steps" in error_of({"max_queued_steps": "10"}, {})


@pytest.mark.parametrize("durability", ["sync", "behind"])
def test_durability_that_is_asked_of_a_store_that_keeps_nothing_is_refused(durability: str):
    flags: dict[str, object] = {"store": "memory://"}
    assert "memory:// keeps nothing" in error_of(flags | {"durability": durability}, {})
    assert "memory:// keeps nothing" in error_of(flags, {"LONGSHORT_DURABILITY": durability})
    assert load(flags, {}).store == "memory://"
    assert load(flags | {"durability": "none"}, {}).durability == "none"


def test_the_command_line_takes_every_setting_and_shows_its_default():
    @click.command()
    @serve_options
    def serve(config_path: Path | None, **flags: str | None) -> None:
        click.echo(repr(load(flags, {}, config_path)))

    shown = " ".join(CliRunner().invoke(serve, ["--help"]).output.split())
    for option in options():
        if option.field != "repository":
            assert f"{option.flag} {option.kind.metavar}" in shown
            assert f"[{option.variable}; default {option.default_text}]" in shown
    given = CliRunner().invoke(serve, ["models", "--drain-timeout", "5s"])
    assert given.output.strip() == repr(ServeConfig(repository=Path("models"), drain_timeout_s=5.0))


@pytest.mark.parametrize("option", options(), ids=lambda option: option.field)
def test_the_docs_have_the_row_of_every_setting(option: Option):
    cells = [
        "`[REPOSITORY]`" if option.field == "repository" else f"`{option.flag} {option.kind.metavar}`",
        f"`{option.variable}`",
        f"`{option.key}`",
        f"`{option.default_text}`",
    ]
    row = f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} | {option.help}"
    assert row in DOCS.read_text(encoding="utf-8")


def test_the_docs_have_no_setting_that_is_gone():
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if "| `LONGSHORT_" in line]
    assert len(rows) == len(options())


@pytest.mark.parametrize(
    "url", ["redys://user:secret@host:1", "redys://:secret@host", "redys://host?password=secret&x=1"]
)
def test_password_of_a_store_is_not_shown(url: str):
    assert "secret" not in error_of({"store": url}, {})
    assert "host" in error_of({"store": url}, {})
