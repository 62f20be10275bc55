"""The command as a whole: exit codes, messages without tracebacks or secrets, options, help, and no TensorFlow."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from ckptflow import errors
from ckptflow.cli.app import app
from ckptflow.cli.exits import EXITS, exit_code
from ckptflow.cli.options import storage_options
from ckptflow.cli.render import age_text, size_text
from ckptflow.errors import CkptflowError
from ckptflow.storage.opening import open_store
from tests import servers
from tests.cli.runner import Runner, run_alone
from tests.ports import free_ports
from tests.roots import make_root

WITHOUT_TENSORFLOW = {
    "ls": (),
    "show": (),
    "verify": (),
    "diff": ("--step", "100", "--other-step", "100"),
    "watch": ("--until-step", "300"),
    "copy": ("COPY",),
    "prune": ("--last", "1"),
    "delete": ("--step", "100"),
    "pin": ("--step", "200"),
    "unpin": ("--step", "200"),
    "report": ("--output", "COPY"),
    "doctor": ("--large-mib", "1"),
    "bench": ("--seconds", "1", "--size-mib", "16", "--concurrency", "1", "--shard-mib", "16"),
}
LOOKING = ("ls", "show", "verify")
VERBS = tuple(command.name or str(command.callback.__name__) for command in app.registered_commands if command.callback)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
NO_TENSORFLOW = """
import sys
from ckptflow.cli import main
try:
    main()
finally:
    loaded = sorted({name.split(".")[0] for name in sys.modules} & {"tensorflow", "keras", "tf_keras"})
    print("loaded:", loaded, file=sys.stderr)
"""


@pytest.mark.parametrize("verb", WITHOUT_TENSORFLOW)
def test_no_verb_loads_tensorflow(root: str, verb: str) -> None:
    args = [f"{root}-copy" if arg == "COPY" else arg for arg in WITHOUT_TENSORFLOW[verb]]
    ran = run_alone(verb, root, *args, script=NO_TENSORFLOW)
    assert (ran.code, ran.err) == (0, "loaded: []\n")


def test_every_verb_is_tried_here() -> None:
    assert sorted(VERBS) == sorted({*WITHOUT_TENSORFLOW, "export", "import"})


def test_help_loads_nothing_that_is_slow() -> None:
    slow = NO_TENSORFLOW.replace('"tensorflow", "keras", "tf_keras"', '"numpy", "fsspec", "rich", "msgspec"')
    ran = run_alone("--help", script=slow)
    assert (ran.code, ran.err) == (0, "loaded: []\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_parses(runner: Runner, verb: str) -> None:
    ran = runner(verb, "--help")
    assert ran.code == 0
    example = re.search(r"Examples?:\n\s+ckptflow (.*)", ran.out)
    assert example is not None
    assert example[1].split()[0] == verb
    known = set(re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", ran.out.replace("/", " ")))
    assert {word for word in example[1].split() if word.startswith("-")} <= known


def test_the_exit_codes_are_in_help_and_docs(runner: Runner) -> None:
    told, docs = runner("--help").out, DOCS.read_text()
    for code, meaning in EXITS.items():
        assert re.search(rf"^ +{code}  {re.escape(meaning)}$", told, re.MULTILINE)
        assert f"| {code} | {meaning} |" in docs


def test_docs_name_every_verb_and_option(runner: Runner) -> None:
    docs = DOCS.read_text()
    for verb in VERBS:
        assert f"ckptflow {verb} " in docs
        for option in re.findall(r"^ +(--[a-z-]+)", runner(verb, "--help").out, re.MULTILINE):
            assert option in docs, f"{verb} {option}"


def test_every_error_has_a_code() -> None:
    for name in errors.__all__:
        assert exit_code(getattr(errors, name)("x")) in set(EXITS) - {0, 70, 130}
    assert exit_code(CkptflowError("x")) == 2
    assert exit_code(ZeroDivisionError()) == 70


def test_version(runner: Runner) -> None:
    from ckptflow import __version__

    assert runner("--version").out == f"ckptflow {__version__}\n"


def test_usage_errors(runner: Runner, root: str) -> None:
    lines = ["ls", "ls URL --bogus", "sl URL", "show URL --step x", "show URL --step=-1", "verify URL --all --step 1"]
    for line in lines:
        ran = runner(*(root if word == "URL" else word for word in line.split()))
        assert (ran.code, ran.out) == (2, ""), line
        assert "Traceback" not in ran.err


@pytest.mark.parametrize("verb", VERBS)
def test_with_json_what_fails_is_json_too(runner: Runner, verb: str, tmp_path: Path) -> None:
    """In each verb, with the code and the words of stderr: an error of ours, and a wrong command line."""
    args = [str(tmp_path / "copy") if arg == "COPY" else arg for arg in WITHOUT_TENSORFLOW.get(verb, ("model.keras",))]
    ours, wrong = runner(verb, "foo://bucket/run", *args, "--json"), runner(verb, "--json", "--bogus")
    for ran, kind in ((ours, None), (wrong, "NoSuchOption")):
        error = ran.json["error"]
        assert (ran.code, error.keys()) == (error["exit_code"], {"kind", "message", "exit_code"}), ran
        assert ran.code == 2
        assert kind in (None, error["kind"])
        assert error["message"] in " ".join(ran.err.split())
        assert ran.out.count("\n") == 1  # of `watch` it is one line more


def test_the_json_of_a_wrong_command_line_has_no_credential(runner: Runner) -> None:
    ran = runner("ls", "--json", "s3://bucket/run", "s3://key:topsecret@bucket/run")
    assert ran.json["error"]["exit_code"] == ran.code == 2
    assert "bucket" in ran.out
    assert "topsecret" not in ran.out


@pytest.mark.parametrize(
    "line",
    ["ls URL URL", "ls URL --step URL", "show URL --step URL", "URL", "ls URL secret=topsecret", "ls --json=URL URL"],
)
def test_stderr_of_a_wrong_command_line_has_no_credential(runner: Runner, line: str) -> None:
    ran = runner(*line.replace("URL", "s3://key:topsecret@bucket/run").split())
    assert (ran.code, ran.out) == (2, "")
    assert "Error: " in ran.err
    assert "topsecret" not in ran.err


@pytest.mark.parametrize("verb", ["ls", "show", "report --json", "verify", "prune --last 9", "pin --step 100"])
def test_json_of_a_name_that_is_not_utf8(runner: Runner, root: str, verb: str) -> None:
    name = os.fsdecode(b"\xff")
    Path(root).rename(Path(root).parent / name)
    ran = runner(*verb.split(), f"{Path(root).parent}/{name}", *([] if "--json" in verb else ["--json"]))
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["url"].startswith(f"{Path(root).parent}/\\udcff")


def test_the_json_of_an_error_about_a_name_that_is_not_utf8(runner: Runner, root: str) -> None:
    name = os.fsdecode(b"\xff")
    for args in (["ls", f"{root}/{name}/000000000100-i0001"], ["ls", root, name], ["show", f"{root}/{name}"]):
        plain, ran = runner(*args), runner(*args, "--json")
        assert (ran.code, ran.json["error"]["exit_code"]) == (plain.code, plain.code)
        assert plain.code in (1, 2)
        assert "\\udcff" in ran.json["error"]["message"]


def test_in_a_directory_that_was_deleted(runner: Runner, root: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = "import os, sys; os.chdir(sys.argv.pop()); os.rmdir(os.getcwd()); from ckptflow.cli import main; main()"
    for args in (["ls", "runs"], ["export", root, "m.safetensors"]):
        gone.mkdir(exist_ok=True)
        ran = run_alone(*args, str(gone), script=script, fresh=False)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == (
            "ckptflow: the current directory was deleted: change to one that exists, or give absolute paths\n"
        )


def test_an_unknown_scheme_names_those_that_work(runner: Runner) -> None:
    for verb in LOOKING:
        ran = runner(verb, "foo://bucket/run")
        assert (ran.code, ran.out) == (2, "")
        assert re.fullmatch(r"ckptflow: foo://bucket/run: .*s3://.*gs://.*\n", ran.err)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "s3:// names no bucket: write s3://BUCKET/PATH"),
        ("gs:///run", "gs:///run names no bucket: write gs://BUCKET/PATH"),
        ("S3://bucket/run", "S3://bucket/run: a scheme is in lower case: write s3://…"),
    ],
)
@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_a_url_that_names_no_bucket_asks_nobody(runner: Runner, url: str, said: str, client: str) -> None:
    ran = runner("ls", url, "-o", f"client={client}")
    assert (ran.code, ran.out, ran.err) == (2, "", f"ckptflow: {said}\n")


@pytest.mark.parametrize("verb", [("ls",), ("show",), ("verify",), ("prune", "--last", "1"), ("pin", "--step", "1")])
def test_what_is_no_directory_is_said(runner: Runner, tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "train.py").touch()
    ran = runner(*verb, f"{tmp_path}/train.py")
    assert (ran.code, ran.err) == (3, f"ckptflow: {tmp_path}/train.py is a file; a directory was expected\n")
    ran = runner(*verb, "/proc/x")
    assert (ran.code, ran.err) == (1, "ckptflow: /proc/x: there is no such directory\n")


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_where_nobody_listens_it_soon_gives_up_in_few_words(runner: Runner, client: str) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    options = f"-o key=k -o secret=s -o client={client} -o client_kwargs.endpoint_url={endpoint}"
    ran = runner("ls", "s3://bucket/run", *options.split())
    *tries, last = ran.err.splitlines()
    assert (ran.code, ran.out) == (4, "")
    assert [line[: len("try 1 failed")] for line in tries] == ["try 1 failed", "try 2 failed"]
    assert max(map(len, tries)) <= 120
    assert endpoint in last
    assert last.endswith("nothing listens there: check the address, and that the server is running")


@pytest.mark.parametrize("option", ["foo=1", "client_kwargs.foo=1", "config_kwargs.foo=1"])
def test_an_option_that_the_storage_does_not_know(runner: Runner, option: str) -> None:
    ran = runner("ls", "s3://bucket/run", "-o", "key=k", "-o", "secret=s", "-o", option)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("ckptflow: s3://bucket/run: unknown storage option 'foo'; check")


def test_one_that_it_does_not_know_without_credentials(runner: Runner) -> None:
    """Then s3fs is asked, whose session finds it out."""
    ran = runner("ls", "s3://bucket/run", "-o", "client=fsspec", "-o", "foo=planted")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("ckptflow: s3://bucket/run: unknown storage option 'foo'; check")
    assert "planted" not in ran.err


@pytest.mark.parametrize("client", [[], ["-o", "client=fsspec"]])
@pytest.mark.parametrize("option", ["foo=planted", "client_kwargs.endpoint_url=planted"])
def test_an_option_that_gcs_does_not_know(runner: Runner, client: list[str], option: str) -> None:
    """gcsfs itself takes any, and passes over it: nobody is asked."""
    ran = runner("ls", "gs://bucket/run", "-o", "token=anon", "-o", option, *client)
    assert (ran.code, ran.out) == (2, "")
    name = option.partition("=")[0].partition(".")[0]
    assert ran.err.startswith(f"ckptflow: gs://bucket/run: unknown storage option {name!r}; check storage_options")
    assert ran.err.rstrip().endswith("token, use_listings_cache, version_aware")
    assert "planted" not in ran.err


def test_options_in_the_environment_may_be_for_another_storage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = '{"client_kwargs": {"endpoint_url": "http://planted"}, "project": "p", "stall_timeout_s": 5}'
    monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", shared)
    assert storage_options(None, shared, url="gs://bucket/run") == {"project": "p", "stall_timeout_s": 5}
    assert capsys.readouterr().err == "gs://bucket/run: not used of CKPTFLOW_STORAGE_OPTIONS: client_kwargs\n"
    found = storage_options(["use_ssl=false"], shared, url="s3://bucket/run")
    assert sorted(found) == ["client_kwargs", "stall_timeout_s", "use_ssl"]
    assert capsys.readouterr().err == "s3://bucket/run: not used of CKPTFLOW_STORAGE_OPTIONS: project\n"
    assert "foo" in storage_options(["foo=1"], shared, url="gs://bucket/run")  # said for this URL, and refused
    capsys.readouterr()
    for url in ("memory://run", "run"):
        assert len(storage_options(None, shared, url=url)) == 3
    assert len(storage_options(None, shared + " ", url="gs://bucket/run")) == 3  # by --storage-options
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", [("ls",), ("prune", "--last", "1"), ("copy", "s3://bucket/run")])
def test_a_disk_has_no_options(
    runner: Runner, root: str, verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = runner(verb[0], root, *verb[1:], "-o", "key=planted", "-o", "client_kwargs.foo=1")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"ckptflow: -o key, client_kwargs.foo: {root} is on a disk, and that has no options\n"
    monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", '{"key": "meant for other URLs"}')
    assert runner("ls", root).code == 0


def test_a_package_that_is_missing_is_named(runner: Runner) -> None:
    ran = runner("ls", "abfs://container/run")
    assert ran.code == 2
    assert "adlfs" in ran.err


def test_a_storage_that_refuses(runner: Runner, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions cannot be taken from root, who may run this; so the listing itself refuses."""
    from ckptflow.storage import local

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", root)

    monkeypatch.setattr(local, "walk", refuse)
    ran = runner("ls", root)
    assert (ran.code, ran.out) == (3, "")
    assert "check the credentials" in ran.err


def test_a_bug_is_told_from_damage(runner: Runner, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptflow.cli import ls

    monkeypatch.setattr(ls, "look", lambda *_, **__: 1 / 0)
    ran = runner("ls", root)
    assert ran.code == 70
    assert "ZeroDivisionError" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.setenv("CKPTFLOW_TRACEBACK", "1")
    ran = runner("ls", root)
    assert ran.code == 70
    assert "Traceback" in ran.err


@pytest.mark.parametrize(("url", "code"), [("{root}-none", 1), ("foo://key:topsecret@bucket/run", 2)])
def test_a_traceback_is_shown_too(
    runner: Runner, root: str, monkeypatch: pytest.MonkeyPatch, url: str, code: int
) -> None:
    """The message, the JSON and the exit code are those without it."""
    args = ("show", url.format(root=root), "--json")
    without = runner(*args)
    monkeypatch.setenv("CKPTFLOW_TRACEBACK", "1")
    ran = runner(*args)
    assert (ran.code, ran.out) == (without.code, without.out)
    assert ran.code == ran.json["error"]["exit_code"] == code
    assert ran.err.startswith("Traceback (most recent call last):\n  File ")
    assert ran.err.endswith(without.err)
    assert "topsecret" not in ran.err


def test_options() -> None:
    pairs = ["key=a=b", "anon=true", "client_kwargs.endpoint_url=http://h:1", "number=007"]
    pairs += ['client_kwargs.more={"a": 1}']
    assert storage_options(pairs, '{"key": "old", "client_kwargs": {"region_name": "x"}}') == {
        "key": "a=b",
        "anon": True,
        "number": "007",
        "client_kwargs": {"region_name": "x", "endpoint_url": "http://h:1", "more": {"a": 1}},
    }
    assert storage_options(None, None) == {}


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        (["hunter2"], None),
        (["=hunter2"], None),
        (["a..b=hunter2"], None),
        (["a=hunter2", "a.b=1"], None),
        (["a={hunter2"], None),
        ([], "hunter2"),
        ([], '["hunter2"]'),
    ],
)
def test_malformed_options_are_not_shown(pairs: list[str], text: str | None) -> None:
    with pytest.raises(ValueError) as refused:
        storage_options(pairs, text)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_on_memory(runner: Runner) -> None:
    make_root("memory://cli", (1, 2))
    assert runner("ls", "memory://cli", "--json").json["resumes_from"] == "000000000002-i0001"
    assert runner("show", "memory://cli", "--step", "1", "--json").json["url"] == "memory://cli/000000000001-i0001"
    assert runner("verify", "memory://cli/000000000002-i0001").code == 0
    assert runner("ls", "memory://cli-empty").out == "memory://cli-empty: no checkpoint is here yet\n"


def test_on_s3(runner: Runner, moto: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    moto.make_bucket("cli-bucket")
    store = open_store("s3://cli-bucket/run", moto.storage_options)
    make_root(store, (1, 2))
    store.close()
    options = ["-o", f"key={servers.S3_KEY}", "-o", f"secret={servers.S3_SECRET}"]
    options += ["-o", f"client_kwargs.endpoint_url={moto.endpoint}", "-o", "client_kwargs.region_name=us-east-1"]
    assert runner("ls", "s3://cli-bucket/run", "--json", *options).json["resumes_from"] == "000000000002-i0001"
    assert runner("verify", "s3://cli-bucket/run", "--all", *options).code == 0
    monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", json.dumps(moto.storage_options))
    assert "of run" in runner("show", "s3://cli-bucket/run/000000000001-i0001").out
    for verb in LOOKING:
        ran = runner(verb, "s3://cli-no-such-bucket/run")
        assert (ran.code, ran.out) == (3, "")
        assert "bucket" in ran.err
        assert servers.S3_SECRET not in ran.err


def test_sizes_and_ages() -> None:
    from datetime import UTC, datetime, timedelta

    told = [size_text(n) for n in (0, 999, 1000, 1536, 10 * 2**20, 3 * 2**40, 5000 * 2**50)]
    assert told == ["0 B", "999 B", "0.98 KiB", "1.50 KiB", "10.0 MiB", "3.00 TiB", "5000.0 PiB"]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ages = [age_text(now - timedelta(seconds=s), now) for s in (-5, 1, 2, 119, 120, 7200, 200_000, 10**9)]
    assert ages == ["just now", "just now", "2 s ago", "119 s ago", "2 min ago", "2 h ago", "2 d ago", "31 y ago"]


def test_narrow_terminals_fold_and_lose_nothing(root: str) -> None:
    ran = run_alone("ls", root, COLUMNS="50")
    assert max(map(len, ran.out.splitlines())) <= 50
    assert "workers" not in ran.out
    assert "newest" in ran.out
