"""batchyard.toml: what a good file means, and that every error names its key and what is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import options
from batchyard.broker.config import (
    FILE_BYTES_MAX,
    LIMITS_ALLOWED,
    ConfigError,
    Limits,
    ModelConfig,
    YardConfig,
    from_models,
    read,
    with_file,
    with_options,
)
from batchyard.transport.errors import BatchyardError, InvalidRequest
from batchyard.transport.messages import Pad
from batchyard.transport.python_models import Function, declared

ONE_MODEL = '[models.digits]\nfile = "digits.onnx"\n'
MAX_BATCH = "models.digits.max_batch: expected an integer from 1 to 1024"
FILE = "models.digits.file: expected the model's file, inside models_root"


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A folder with one model file and, outside of it, one that must not be served."""
    (tmp_path / "yard").mkdir()
    (tmp_path / "yard" / "digits.onnx").write_bytes(b"")
    (tmp_path / "outside.onnx").write_bytes(b"")
    return tmp_path / "yard"


def written(yard: Path, text: str) -> YardConfig:
    (yard / "batchyard.toml").write_text(text, encoding="utf-8")
    return read(yard / "batchyard.toml")


def problems(yard: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        written(yard, text)
    assert "\n  ".join(caught.value.problems) in str(caught.value)
    return caught.value.problems


def test_one_model_and_nothing_else_means_the_defaults(yard: Path) -> None:
    config = written(yard, ONE_MODEL)
    path = (yard / "digits.onnx").resolve()
    assert config.models == {"digits": ModelConfig("digits", path, 32, None, True, file="digits.onnx")}
    assert config.limits == Limits(65536, 4294967296, 16384, 2147483648, 1024)
    assert config.budgets_ns == (5_000_000, 25_000_000, 100_000_000, 1_000_000_000)
    assert config.spin_ns == 100_000


def test_every_key_is_read(yard: Path) -> None:
    (yard / "files").mkdir()
    (yard / "files" / "a.onnx").write_bytes(b"")
    config = written(
        yard,
        """
        models_root = "files"
        [models."resnet.18"]
        file = "a.onnx"
        max_batch = 1024
        batchable = false
        warmup = false
        idempotent = false
        join = true
        cache_ms = 1.5
        cache_bytes = 9
        buckets = [1, 8, 1024]
        run_seconds_max = 2.5
        [limits]
        queue_rows_max = 1
        queue_bytes_max = 2
        client_rows_max = 3
        client_bytes_max = 4
        clients_max = 5
        [priorities]
        urgent_ms = 0.5
        high_ms = 1
        normal_ms = 2
        low_ms = 3
        [broker]
        spin_us = 0
        """,
    )
    path = (yard / "files" / "a.onnx").resolve()
    assert config.models == {
        "resnet.18": ModelConfig(
            "resnet.18",
            path,
            1024,
            False,
            False,
            False,
            True,
            1_500_000,
            9,
            (1, 8, 1024),
            "a.onnx",
            run_ns_max=2_500_000_000,
        )
    }
    assert config.limits == Limits(1, 2, 3, 4, 5)
    as_arguments = from_models({}, models_root=yard, limits=dict(zip(LIMITS_ALLOWED, range(1, 6), strict=True)))
    assert as_arguments.limits == config.limits
    assert config.budgets_ns == (500_000, 1_000_000, 2_000_000, 3_000_000)
    assert config.spin_ns == 0


def test_the_bundled_example_is_a_good_file() -> None:
    example = Path(__file__).parents[3] / "examples" / "batchyard.toml"
    assert set(read(example).models) == {"digits"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            ONE_MODEL + 'max_batch = "8"',
            'models.digits.max_batch: expected an integer from 1 to 1024, found "8"',
        ),
        (ONE_MODEL + "max_batch = 0", "models.digits.max_batch: expected an integer from 1 to 1024, found 0"),
        (
            ONE_MODEL + "max_batch = 1025",
            "models.digits.max_batch: expected an integer from 1 to 1024, found",
        ),
        (
            ONE_MODEL + "max_batch = true",
            "models.digits.max_batch: expected an integer from 1 to 1024, found true",
        ),
        (
            ONE_MODEL + "max_batch = 8.0",
            "models.digits.max_batch: expected an integer from 1 to 1024, found 8.0",
        ),
        (ONE_MODEL + "batchable = 1", "models.digits.batchable: expected true or false, found 1"),
        (ONE_MODEL + 'warmup = "yes"', 'models.digits.warmup: expected true or false, found "yes"'),
        (
            "[models.digits]",
            f"{FILE}, found nothing",
        ),
        (
            "[models.digits]\nfile = 3",
            f"{FILE}, found 3",
        ),
        (
            '[models.digits]\nfile = ""',
            f'{FILE}, found ""',
        ),
        (
            '[models.digits]\nfile = "a\\u0000b"',
            FILE,
        ),
        (
            '[models.digits]\nfile = "digit.onnx"',
            'models.digits.file: expected a file, found "digit.onnx": no such',
        ),
        ('[models.digits]\nfile = "."', 'models.digits.file: expected a file, found "."'),
        ("models = 3", "models: expected a table, [models], found 3"),
        ("[models]", "models: expected at least one table [models.<name>], found none"),
        ("", "models: expected at least one table [models.<name>], found none"),
        ('[models]\ndigits = "digits.onnx"', "models.digits: expected a table, [models.digits], found"),
        ('[models."../etc"]\nfile = "digits.onnx"', 'models."../etc": expected a name of 1 to 255 letters'),
        (
            '[models."digits\\n"]\nfile = "digits.onnx"',
            'models."digits\\n": expected a name of 1 to',
        ),
        (f'[models.{"a" * 256}]\nfile = "digits.onnx"', "expected a name of 1 to 255 letters"),
        ('models_root = "nowhere"\n' + ONE_MODEL, 'models_root: expected a folder, found "nowhere"'),
        ("models_root = 3\n" + ONE_MODEL, "models_root: expected a folder, found 3"),
        (
            ONE_MODEL + "[limits]\nclients_max = -1",
            "limits.clients_max: expected an integer from 1 to 65536, found -1",
        ),
        (ONE_MODEL + "[limits]\nqueue_rows_max = []", "limits.queue_rows_max: expected an integer from 1 to"),
        ("limits = 1\n" + ONE_MODEL, "limits: expected a table, [limits], found 1"),
        (
            ONE_MODEL + "[priorities]\nhigh_ms = nan",
            "priorities.high_ms: expected milliseconds, a number from 0 to 3600000, found nan",
        ),
        (
            ONE_MODEL + "[priorities]\nlow_ms = inf",
            "priorities.low_ms: expected milliseconds, a",
        ),
        (
            ONE_MODEL + "[priorities]\nurgent_ms = 50",
            "priorities: expected budgets with urgent <= high <= normal <= low, found urgent 50, high 25,",
        ),
        (
            ONE_MODEL + "[broker]\nspin_us = 10001",
            "broker.spin_us: expected an integer from 0 to 10000",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_the_range(yard: Path, text: str, expected: str) -> None:
    (problem,) = problems(yard, text)
    assert expected in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ONE_MODEL + "max_batches = 8", 'models.digits.max_batches: unknown key, did you mean "max_batch"?'),
        (ONE_MODEL + "[limit]\nclients_max = 3", 'limit: unknown key, did you mean "limits"?'),
        (
            ONE_MODEL + "[limits]\nclient_max = 3",
            'limits.client_max: unknown key, did you mean "client',
        ),
        (ONE_MODEL + "[priorities]\nurgent = 3", 'priorities.urgent: unknown key, did you mean "urgent_ms"?'),
        (ONE_MODEL + "[broker]\nzzz = 3", "broker.zzz: unknown key, allowed here: spin_us"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(yard: Path, text: str, expected: str) -> None:
    (problem,) = problems(yard, text)
    assert expected in problem
    assert "allowed here: " in problem


def test_all_problems_are_reported_at_once_one_per_line(yard: Path) -> None:
    text = ONE_MODEL + 'max_batch = "8"\n[limits]\nclients_max = 0\n[broker]\nspin = 3\n[extra]\n'
    found = problems(yard, text)
    assert sorted(problem.split(":")[0] for problem in found) == [
        "broker.spin",
        "extra",
        "limits.clients_max",
        "models.digits.max_batch",
    ]
    assert all("\n" not in problem for problem in found)


@pytest.mark.parametrize("file", ["../outside.onnx", "sub/../../outside.onnx"])
def test_a_model_file_outside_of_models_root_is_refused(yard: Path, file: str) -> None:
    (problem,) = problems(yard, f'[models.digits]\nfile = "{file}"')
    assert "models.digits.file: expected a file inside models_root" in problem


def test_an_absolute_path_outside_of_models_root_is_refused(yard: Path) -> None:
    (problem,) = problems(yard, f"[models.digits]\nfile = '{yard.parent / 'outside.onnx'}'")
    assert "models.digits.file: expected a file inside models_root" in problem


@pytest.mark.skipif(os.name == "nt", reason="symlinks need rights on Windows")
def test_a_symlink_out_of_models_root_is_refused(yard: Path) -> None:
    (yard / "innocent.onnx").symlink_to(yard.parent / "outside.onnx")
    (problem,) = problems(yard, '[models.digits]\nfile = "innocent.onnx"')
    assert "models.digits.file: expected a file inside models_root" in problem


@pytest.mark.skipif(os.name == "nt", reason="symlinks need rights on Windows")
def test_a_symlink_inside_models_root_is_judged_by_where_it_leads_and_served_by_its_name(yard: Path) -> None:
    (yard / "current.onnx").symlink_to("digits.onnx")
    config = written(yard, '[models.digits]\nfile = "current.onnx"')
    assert config.models["digits"].path == yard.resolve() / "current.onnx"


@pytest.mark.skipif(os.name == "nt", reason="symlinks need rights on Windows")
def test_a_symlink_in_circles_is_a_problem_and_no_traceback(yard: Path) -> None:
    (yard / "loop.onnx").symlink_to("loop.onnx")
    (problem,) = problems(yard, '[models.digits]\nfile = "loop.onnx"')
    assert problem.startswith("models.digits.file: expected a file")


def test_a_model_file_name_that_is_too_long_is_a_problem_and_no_traceback(yard: Path) -> None:
    (problem,) = problems(yard, f'[models.digits]\nfile = "{"a" * 5000}"')
    assert problem.startswith("models.digits.file: expected a file")
    assert "a" * 200 not in problem.split("found", 1)[1].split(":", 1)[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml:\n  no such file"):
        read(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[models\n", "not TOML: "),
        (b"a = 1\na = 2\n", "not TOML: "),
        (b"a = '\xff'\n", "not UTF-8 text: wrong byte at offset 5"),
        (b"a = " + b"[" * 10_000 + b"]" * 10_000, "nested too deeply to be read"),
        (b"#" * (FILE_BYTES_MAX + 1), "larger than the 16,777,216 bytes of a configuration"),
    ],
)
def test_a_file_that_is_no_toml_says_where(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "bad.toml")
    assert expected in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_a_folder_in_place_of_the_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)


def test_config_errors_are_ours_and_value_errors() -> None:
    assert issubclass(ConfigError, BatchyardError)
    assert issubclass(ConfigError, ValueError)


def test_an_embedded_yard_takes_files_from_anywhere(yard: Path) -> None:
    config = from_models({"a": yard / "digits.onnx", "b": str(yard.parent / "outside.onnx")}, max_batch=8)
    assert {name: (model.path.name, model.max_batch) for name, model in config.models.items()} == {
        "a": ("digits.onnx", 8),
        "b": ("outside.onnx", 8),
    }
    assert config.limits == Limits()


def test_an_embedded_yard_reports_all_problems_too(yard: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        from_models({"a/b": yard / "digits.onnx", "gone": yard / "gone.onnx"}, max_batch=0)
    first, *rest = caught.value.problems
    assert first == "max_batch: expected an integer from 1 to 1024, found 0"
    assert [problem.split(":")[0] for problem in rest] == ['models."a/b"', "models.gone"]


def test_an_embedded_yard_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        from_models({})


def test_reading_a_configuration_loads_no_runtime() -> None:
    code = (
        "import sys, batchyard.broker.config\n"
        "heavy = {'onnxruntime', 'onnx', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- files that operators name while the yard runs ----------------------------------------------

NET = ModelConfig("net", Path("/nowhere"), 8, batchable=True, warmup=False, file="digits.onnx")


def refused_file(file: str, root: Path | None, model: ModelConfig = NET) -> str:
    with pytest.raises(InvalidRequest) as caught:
        with_file(model, file, root)
    return str(caught.value)


def test_another_file_changes_nothing_else_of_a_model(yard: Path) -> None:
    found = with_file(NET, "digits.onnx", yard.resolve())
    assert found == ModelConfig("net", (yard / "digits.onnx").resolve(), 8, True, False, file="digits.onnx")


def test_no_file_means_the_one_that_it_has_looked_up_anew(yard: Path) -> None:
    (yard / "next.onnx").write_bytes(b"")
    link = yard / "current.onnx"
    link.symlink_to("digits.onnx")
    model = with_file(NET, "current.onnx", yard.resolve())
    assert model.path == yard.resolve() / "current.onnx"
    link.unlink()
    link.symlink_to("../outside.onnx")
    with pytest.raises(InvalidRequest, match=r"outside\.onnx"):
        with_file(model, "", yard.resolve())
    link.unlink()
    link.symlink_to("next.onnx")
    assert with_file(model, "", yard.resolve()) == model


def test_an_absolute_path_inside_the_root_will_do(yard: Path) -> None:
    assert with_file(NET, str(yard / "digits.onnx"), yard.resolve()).path == (yard / "digits.onnx").resolve()


@pytest.mark.parametrize(
    "file", ["../outside.onnx", "sub/../../outside.onnx", "{parent}/outside.onnx", "out.onnx"]
)
def test_a_file_outside_the_root_is_refused_with_where_it_is(yard: Path, file: str) -> None:
    (yard / "sub").mkdir()
    (yard / "out.onnx").symlink_to("../outside.onnx")
    said = refused_file(file.format(parent=yard.parent), yard.resolve())
    assert said.startswith("models.net: expected a file inside models_root (")
    assert said.endswith(f"which is {(yard.parent / 'outside.onnx').resolve()}")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere.onnx", "no such file"),
        (".", "it is a folder"),
        ("digits.onnx\0", "expected a file inside models_root"),
        ("x" * 4000, "expected a file"),
        ("loop.onnx", "expected a file"),
    ],
)
def test_a_file_that_is_none_is_refused(yard: Path, file: str, said: str) -> None:
    (yard / "loop.onnx").symlink_to("loop.onnx")
    assert said in refused_file(file, yard.resolve())


def test_a_new_model_needs_a_file(yard: Path) -> None:
    assert 'found ""' in refused_file("", yard.resolve(), ModelConfig("new", Path()))


@pytest.mark.parametrize("name", ["", "../net", "a/b", "a b", "-a", "x" * 256])
def test_a_name_that_is_none_is_refused(yard: Path, name: str) -> None:
    assert "expected a name of 1 to 255 letters" in refused_file(
        "digits.onnx", yard.resolve(), ModelConfig(name, Path())
    )


def test_without_a_root_only_the_models_own_file_can_be_read_anew(yard: Path) -> None:
    assert "started without models_root" in refused_file("digits.onnx", None)
    own = ModelConfig("net", yard / "digits.onnx", file=str(yard / "digits.onnx"))
    assert with_file(own, "", None).path == (yard / "digits.onnx").resolve()


@pytest.mark.skipif(os.name == "nt", reason="symlinks need rights on Windows")
def test_a_yard_whose_own_models_are_links_loads_others_that_lead_to_the_same_folder(yard: Path) -> None:
    """The Hugging Face cache: a snapshot's files are links into a folder of blobs."""
    snapshot, blobs = yard / "snapshot", yard / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir()
    for blob, name in (("b1", "model.onnx"), ("b2", "model_fp16.onnx")):
        (blobs / blob).write_bytes(b"")
        (snapshot / name).symlink_to(f"../blobs/{blob}")
    (snapshot / "out.onnx").symlink_to("../../outside.onnx")
    config = from_models({"m": snapshot / "model.onnx"})
    root = snapshot.resolve()
    assert (config.models_root, config.real_folders) == (root, (blobs.resolve(),))
    model = config.models["m"]
    assert model.path == snapshot / "model.onnx"

    assert with_file(model, "", root, real_folders=config.real_folders) == model
    other = with_file(model, "model_fp16.onnx", root, real_folders=config.real_folders)
    assert (other.path, other.anywhere) == (root / "model_fp16.onnx", False)
    with pytest.raises(InvalidRequest, match="inside models_root"):
        with_file(model, "out.onnx", root, real_folders=config.real_folders)
    with pytest.raises(InvalidRequest, match="inside models_root"):  # a root that was named is the only one
        with_file(model, "model_fp16.onnx", root)


def test_what_the_program_named_can_be_read_anew_wherever_it_lies(yard: Path) -> None:
    outside = (yard.parent / "outside.onnx").absolute()
    config = from_models({"a": outside}, models_root=yard)
    assert with_file(config.models["a"], "", config.models_root) == config.models["a"]
    with pytest.raises(InvalidRequest, match="inside models_root"):
        with_file(config.models["a"], str(outside), config.models_root)


def test_an_embedded_yards_root_is_the_folder_that_its_models_share(yard: Path) -> None:
    both = {"a": yard / "digits.onnx", "b": yard.parent / "outside.onnx"}
    assert from_models({"a": yard / "digits.onnx"}).models_root == yard.resolve()
    assert from_models(both).models_root is None
    assert from_models(both, models_root=yard).models_root == yard.resolve()
    with pytest.raises(ConfigError, match="models_root: expected a folder"):
        from_models(both, models_root=yard / "nowhere")


EXPECTED_BUCKETS = (
    "models.digits.buckets: expected rising batch sizes, at most 64, the last of them max_batch = 32; found "
)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("join = 1", "models.digits.join: expected true or false, found 1"),
        ('idempotent = "no"', 'models.digits.idempotent: expected true or false, found "no"'),
        ("run_seconds_max = 0", "models.digits.run_seconds_max: expected seconds, a number above 0 and up to 604800"),
        ("run_seconds_max = nan", "models.digits.run_seconds_max: expected seconds, a number above 0"),
        ("run_seconds_max = true", "models.digits.run_seconds_max: expected seconds, a number above 0"),
        ('run_seconds_max = "5"', "models.digits.run_seconds_max: expected seconds, a number above 0"),
        ("run_seconds_max = 1e9", "models.digits.run_seconds_max: expected seconds, a number above 0"),
        ("cache_ms = -1", "models.digits.cache_ms: expected milliseconds, a number from 0 to 86400000, found -1"),
        ("cache_ms = nan", "models.digits.cache_ms: expected milliseconds, a number from 0 to 86400000, found nan"),
        ("cache_bytes = 0", "models.digits.cache_bytes: expected an integer from 1 to 281474976710656, found 0"),
        ("buckets = 32", EXPECTED_BUCKETS + "32"),
        ("buckets = [1, 4]", EXPECTED_BUCKETS + "[1, 4]"),
        ("buckets = [4, 1, 32]", EXPECTED_BUCKETS + "[4, 1, 32]"),
        ("buckets = [1, 1, 32]", EXPECTED_BUCKETS + "[1, 1, 32]"),
        ("buckets = [0, 32]", EXPECTED_BUCKETS + "[0, 32]"),
        ("buckets = [true, 32]", EXPECTED_BUCKETS + "[True, 32]"),
        ("buckets = [1.5, 32]", EXPECTED_BUCKETS + "[1.5, 32]"),
        ("buckets = [1, 64]", EXPECTED_BUCKETS + "[1, 64]"),
        ("bucket = [32]", 'models.digits.bucket: unknown key, did you mean "buckets"?'),
    ],
)  # fmt: skip
def test_wrong_keys_of_shared_work_and_buckets_say_what_is_allowed(
    yard: Path, line: str, problem: str
) -> None:
    (found,) = problems(yard, ONE_MODEL + line + "\n")
    assert found.startswith(problem)


def test_sizes_that_may_be_run_end_with_the_models_own_maximum(yard: Path) -> None:
    text = ONE_MODEL + "max_batch = 16\n"
    assert written(yard, text + "buckets = [1, 4, 16]").models["digits"].buckets == (1, 4, 16)
    assert written(yard, text + "buckets = [16]").models["digits"].buckets == (16,)
    assert written(yard, text + "buckets = []").models["digits"].buckets == ()
    (found,) = problems(yard, text + "buckets = [1, 4, 32]")
    assert "max_batch = 16" in found


def test_a_list_of_too_many_sizes_is_not_repeated_in_full(yard: Path) -> None:
    (found,) = problems(yard, ONE_MODEL + f"buckets = {list(range(5000))}")
    assert len(found) < 300


def test_nothing_is_shared_or_kept_unless_it_is_asked_for(yard: Path) -> None:
    model = written(yard, ONE_MODEL).models["digits"]
    assert (model.join, model.cache_ns, model.idempotent, model.buckets) == (False, 0, True, ())
    model = written(yard, ONE_MODEL + "join = true\ncache_ms = 0.5\n").models["digits"]
    assert (model.join, model.cache_ns, model.cache_bytes) == (True, 500_000, 64 << 20)


# ---- Python functions ---------------------------------------------------------------------------


@pytest.fixture
def python(yard: Path) -> Path:
    """The same folder, with a Python file in it and one outside."""
    (yard / "f.py").write_text("raise SystemExit  # a broker never runs it\n")
    (yard.parent / "outside.py").write_text("")
    return yard


def test_a_function_is_named_by_its_file_or_its_module(python: Path) -> None:
    config = written(python, '[models.a]\npython = "f.py:go"\n[models.b]\npython = "my.pack:Go"\nmax_batch = 4\n')
    assert config.models == {
        "a": ModelConfig("a", (python / "f.py").resolve(), file="f.py:go", function=Function("go")),
        "b": ModelConfig("b", Path(), 4, file="my.pack:Go", function=Function("Go", "my.pack")),
    }
    assert not config.load_python


def test_a_configuration_may_say_what_a_function_takes_and_gives(python: Path) -> None:
    text = '[models.a]\npython = "f.py:go"\ninputs = { x = "bool[n]" }\noutputs = "bool[n]"\n'
    function = written(python, text).models["a"].function
    assert function is not None
    assert function.signature == declared({"x": "bool[n]"}, "bool[n]")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('python = "go"', 'models.a.python: \'go\' names no Python function: write "package.module:function"'),
        ("python = 3", "models.a.python: '3' names no Python function"),
        ('python = "f.py:go"\nfile = "digits.onnx"', "models.a.python: a model is a file or a Python function, not both"),
        ('python = "g.py:go"', 'models.a.python: expected a file, found "g.py": no such file'),
        ('python = "../outside.py:go"', "models.a.python: expected a file inside models_root"),
        ('python = "f.py:go"\ninputs = "int[n]"', "models.a.python: tensor 'input': there is no element type 'int'"),
        ('python = "f.py:go"\noutputs = "bool[n]"', "models.a.python: inputs is a text such as"),
        ('python = "f.py:go"\ninputs = 3', "models.a.python: inputs is a text such as"),
        ('file = "digits.onnx"\ninputs = "bool[n]"', "models.a.inputs: an ONNX file says itself what it takes"),
    ],
)  # fmt: skip
def test_mistakes_about_functions_name_their_key(python: Path, text: str, said: str) -> None:
    assert problems(python, f"[models.a]\n{text}\n")[0].startswith(said)


def test_an_embedded_yard_takes_functions_too(python: Path) -> None:
    signature = declared("bool[n]")
    config = from_models(
        {"a": f"{python}/f.py:go", "b": "my.pack:go"}, signatures={"b": signature}, load_python=True
    )
    path = (python / "f.py").resolve()
    assert config.models["a"] == ModelConfig(
        "a", path, file=f"{python}/f.py:go", function=Function("go"), anywhere=True
    )
    assert config.models["b"].function == Function("go", "my.pack", signature)
    assert (config.models_root, config.load_python) == (path.parent, True)


def test_an_order_names_python_only_where_the_configuration_lets_it(python: Path) -> None:
    root = python.resolve()
    for file in ("f.py:go", "os:system"):
        assert "set load_python = true" in refused_file(file, root)
    found = with_file(NET, "f.py:go", root, load_python=True)
    assert (found.path, found.function) == (root / "f.py", Function("go"))
    for file, said in (("os:system", "importable module"), ("../outside.py:go", "inside models_root")):
        with pytest.raises(InvalidRequest, match=said):
            with_file(NET, file, root, load_python=True)


def test_a_functions_own_file_is_read_anew_without_leave_and_keeps_what_is_known_of_it(python: Path) -> None:
    function = Function("go", "", declared("bool[n]"))
    model = ModelConfig("a", python / "f.py", file="f.py:go", function=function)
    assert with_file(model, "", python.resolve()) == ModelConfig(
        "a", (python / "f.py").resolve(), file="f.py:go", function=function
    )
    assert with_file(model, "digits.onnx", python.resolve()).function is None
    module = ModelConfig("b", Path(), file="my.pack:go", function=Function("go", "my.pack"))
    assert "only a process that starts anew reads again" in refused_file("", python, module)


EXPECTED_AXES = "models.digits.batch_axis: expected an axis, counted from 0, or a table such as { x = 0, state = 1 }"


@pytest.mark.parametrize(
    ("line", "axis"),
    [("", None), ("batch_axis = 1", 1), ("batch_axis = { image = 0, logits = 0 }", {"image": 0, "logits": 0})],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_an_operator_says_where_the_rows_are_and_whether_to_believe_it(
    yard: Path, line: str, axis: Any, trusted: bool
) -> None:
    said = f"trusted = {str(trusted).lower()}\n"
    model = written(yard, ONE_MODEL + line + "\n" + said).models["digits"]
    assert (model.batch_axis, model.trusted) == (axis, trusted)


@pytest.mark.parametrize("wrong", ["-1", "64", "true", "1.0", '"batch"', "[0]", "{}", "{ x = -1 }", '{ x = "n" }', "{ x = true }"])
def test_an_axis_that_is_none_is_named_with_what_is_allowed(yard: Path, wrong: str) -> None:
    (found,) = problems(yard, ONE_MODEL + f"batch_axis = {wrong}\n")
    assert found.startswith(EXPECTED_AXES)


def test_trust_is_true_or_false(yard: Path) -> None:
    (found,) = problems(yard, ONE_MODEL + 'trusted = "yes"\n')
    assert found.startswith("models.digits.trusted: expected true or false")
# ---- options: the same table in batchyard.toml, in `serve`, and in an operator's order -----------------

SAID: dict[str, object] = {
    "max_batch": 8,
    "batchable": True,
    "batch_axis": {"x": 0, "state": 1},
    "trusted": True,
    "warmup": False,
    "idempotent": False,
    "join": True,
    "cache_ms": 2.5,
    "cache_bytes": 1000,
    "buckets": [1, 8],
    "run_seconds_max": 2.5,
    "pad": {"t": {"to": [16, 64], "fill": {"x": 3, "mask": False}}},
    "batch_elements_max": 512,
}
MEANT = ModelConfig(
    "digits", Path(), 8, True, False, False, True, 2_500_000, 1000, (1, 8),
    batch_axis={"x": 0, "state": 1}, trusted=True, run_ns_max=2_500_000_000,
    pad={"t": Pad([16, 64], {"x": 3.0, "mask": 0.0})}, batch_elements_max=512,
)  # fmt: skip
WRONG = (
    ("batchable", 3, "expected true or false, found 3"),
    ("max_batch", 0, "expected an integer from 1 to 1024, found 0"),
    ("batch_axis", {1: 0}, "expected an axis, counted from 0, or a table"),
    ("buckets", [1, 4], "the last of them max_batch = 32; found [1, 4]"),
    ("cache_ms", float("nan"), "expected milliseconds"),
    ("wormup", False, 'unknown key, did you mean "warmup"?'),
    ("trusted", b"yes", "expected true or false"),
)


def test_every_key_of_a_models_table_is_an_option() -> None:
    assert set(SAID) == set(options.KEYS)


def test_toml_serve_and_orders_read_one_table_alike(yard: Path) -> None:
    toml = '''max_batch = 8
        batchable = true
        batch_axis = { x = 0, state = 1 }
        trusted = true
        warmup = false
        idempotent = false
        join = true
        cache_ms = 2.5
        cache_bytes = 1000
        run_seconds_max = 2.5
        pad = { t = { to = [16, 64], fill = { x = 3, mask = false } } }
        batch_elements_max = 512
        buckets = [1, 8]'''
    read_model = written(yard, f"{ONE_MODEL}\n{toml}").models["digits"]
    served = from_models({"digits": yard / "digits.onnx"}, model_options={"digits": SAID}).models["digits"]
    ordered = with_options(ModelConfig("digits", Path()), SAID)
    same = {"path": Path(), "file": "", "anywhere": False}
    assert replace(read_model, **same) == replace(served, **same) == ordered == MEANT


@pytest.mark.parametrize(("key", "value", "said"), WRONG)
def test_a_wrong_option_is_told_of_in_the_same_words(yard: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as ordered:
        with_options(ModelConfig("digits", Path()), {key: value})
    with pytest.raises(ConfigError) as served:
        from_models({"digits": yard / "digits.onnx"}, model_options={"digits": {key: value}})
    assert str(ordered.value).startswith(f"models.digits.{key}: ")
    assert said in str(ordered.value)
    (problem,) = served.value.problems
    assert problem.removeprefix("options") == str(ordered.value).removeprefix("models")


def test_options_of_a_model_that_is_not_served_are_a_problem(yard: Path) -> None:
    with pytest.raises(ConfigError, match=r'options\.digit: unknown key, did you mean "digits"'):
        from_models({"digits": yard / "digits.onnx"}, model_options={"digit": {}})
    with pytest.raises(ConfigError, match=r"options\.digits: expected a table"):
        from_models({"digits": yard / "digits.onnx"}, model_options={"digits": 3})


def test_an_order_changes_what_it_says_and_nothing_else() -> None:
    assert with_options(MEANT, {}) == MEANT
    assert with_options(MEANT, {"warmup": True}) == replace(MEANT, warmup=True)
    assert with_options(MEANT, {"batchable": None}) == replace(MEANT, batchable=None)  # as the names say
    with pytest.raises(InvalidRequest, match="its buckets end at 8: say buckets that end at 4, too"):
        with_options(MEANT, {"max_batch": 4})
    assert with_options(MEANT, {"max_batch": 4, "buckets": []}) == replace(MEANT, max_batch=4, buckets=())
