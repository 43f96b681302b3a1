"""Strict YAML: what is read, what is refused, and on which line."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    dotted,
    dump_yaml,
    load_document,
    load_yaml,
    parse,
    resolve_scalar,
)
from deploy.errors import ConfigError


def problems_of(text):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),  # text to PyYAML
        ("1.0e-3", 1.0e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.25", -0.25),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("no", "no"),  # false to PyYAML
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("12:30", "12:30"),  # 750 to PyYAML
        ("2026-01-31", "2026-01-31"),  # a date to PyYAML
        ("1.2.3", "1.2.3"),
        ("site-1", "site-1"),
        ("0.5x", "0.5x"),
        ("e5", "e5"),
    ],
)
def test_plain_scalars(text, value):
    found = parse(f"key: {text}").value["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("010", "leading zero"),
        ("-007", "leading zero"),
        ("00.5", "leading zero"),
        ("0x1f", "plain decimal digits"),
        ("0o17", "plain decimal digits"),
        ("0b101", "plain decimal digits"),
        ("1_000", "plain decimal digits"),
        ("1_000.5", "plain decimal digits"),
        (".nan", "finite number"),
        (".NaN", "finite number"),
        ("-.inf", "finite number"),
        (".Inf", "finite number"),
        ("1e999", "too large"),
        ("9" * 19, "too many digits"),
    ],
)
def test_ambiguous_or_infinite_scalars_are_refused_and_quoted_ones_are_text(text, rule):
    (problem,) = problems_of(f"a: 1\nkey: {text}\n")
    assert rule in problem.rule
    assert (problem.path, problem.where, problem.value) == ("key", "line 2", text)
    assert parse(f"key: '{text}'").value == {"key": text}


def test_pyyaml_would_read_these_differently():
    """The traps are real with the installed PyYAML; if it changes, the module's docstring must too."""
    assert yaml.safe_load("[1e-5, 010, no, 12:30]") == ["1e-5", 8, False, 750]
    assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}


def test_every_problem_of_a_file_at_once_with_its_line():
    text = "a: 1\nb: {x: 010}\na: 2\nc: !!python/name:os.system ''\nd: &x [1]\ne: *x\nf:\n  - .nan\n"
    found = [(problem.where, problem.path) for problem in problems_of(text)]
    assert found == [
        ("line 2", "b.x"),
        ("line 3", "a"),
        ("line 4", ""),
        ("line 5", ""),
        ("line 6", ""),
        ("line 8", "f[0]"),
    ]


def test_a_duplicate_key_names_both_lines():
    (problem,) = problems_of("seed: 1\nname: x\nseed: 2\n")
    assert str(problem) == "line 3: seed: given twice; first in line 1"


@pytest.mark.parametrize(
    "text", ["!!str x", "!local {a: 1}", "!!python/object/apply:os.system ['true']", "! x"]
)
def test_tags_are_refused(text):
    assert any("tags" in problem.rule for problem in problems_of(f"key: {text}"))


def test_a_bomb_of_aliases_is_refused_without_unfolding():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]  # 9**30 items, unfolded
    assert len(problems_of("\n".join(lines))) == 30 + 29 * 9


@pytest.mark.parametrize("text", ["<<: {a: 1}", "? [1, 2]\n: 3", "? {a: 1}\n: 3", "{? : 3}", "~: 3"])
def test_keys_that_are_no_text_are_refused(text):
    assert any("keys" in problem.rule for problem in problems_of(text))


def test_keys_are_never_converted():
    assert parse("{no: 1, 010: 2, 1e3: 3, true: 4}").value == {"no": 1, "010": 2, "1e3": 3, "true": 4}


def test_depth_is_limited_both_ways():
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH).value is not None
    assert "levels deep" in problems_of("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))[0].rule
    assert "levels deep" in problems_of("{a: " * 100_000)[0].rule


@pytest.mark.parametrize(
    "text", ["a: 1\n---\nb: 2\n", "%YAML 1.1\n---\na: 1\n", "%TAG ! tag:x,2000:\n---\na: 1\n"]
)
def test_directives_and_further_documents_are_refused(text):
    assert problems_of(text)


@pytest.mark.parametrize(
    ("text", "line"), [("a: [1,\nb: }", "line 2"), ("\ta: 1", "line 1"), ("a: 'x", "line 1")]
)
def test_what_is_no_yaml_names_a_line(text, line):
    (problem,) = problems_of(text)
    assert "not YAML" in problem.rule
    assert problem.where == line


def test_control_characters_are_refused():
    assert "not YAML" in problems_of("a: \x00")[0].rule


def test_lines_of_every_path(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a:\n  b: 1\n  c:\n    - 5\n    - {d: 6}\n", encoding="utf-8")
    document = load_document(file)
    assert document.lines[("a",)] == 1
    assert document.lines[("a", "b")] == 2
    assert document.lines[("a", "c", 1)] == 5
    assert document.lines[("a", "c", 1, "d")] == 5
    assert load_yaml(file) == {"a": {"b": 1, "c": [5, {"d": 6}]}}


@pytest.mark.parametrize(
    ("content", "rule"),
    [(b"a: \xff", "UTF-8"), (b"#" * (MAX_BYTES + 1), "at most"), (None, "cannot be read: No such file")],
)
def test_files_that_cannot_be_read(tmp_path, content, rule):
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rule) as caught:
        load_yaml(file)
    assert str(file) in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path)


def test_empty_files_and_byte_order_marks(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_bytes(b"")
    assert load_yaml(file) is None
    file.write_bytes(b"\xef\xbb\xbfa: 1")
    assert load_yaml(file) == {"a": 1}


def test_dotted_paths():
    assert dotted(("data", "sites", "north", "shape", 2)) == "data.sites.north.shape[2]"


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
tricky = st.sampled_from(
    ["1e-5", "no", "010", ".nan", "null", "", "~", "0x1", "1_0", "- a", "a: b", "# c", "<<", "'"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | tricky,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries((texts | tricky).filter(lambda k: k not in ("", "~", "<<")), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_dumped_values_read_back_equal(value):
    assert parse(dump_yaml(value)).value == value


@given(texts | tricky)
def test_any_scalar_is_read_or_refused_and_numbers_are_finite(text):
    try:
        value = resolve_scalar(text)
    except ValueError:
        return
    assert value is None or isinstance(value, bool | str | int) or abs(value) < float("inf")


def test_a_value_that_stands_twice_is_written_twice():
    shared = {"epsilon": 1.0, "of": [1, 2]}
    value = {"lifetime": shared, "per_run": shared}
    assert parse(dump_yaml(value)).value == value
