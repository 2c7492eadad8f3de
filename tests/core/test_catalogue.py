"""Catalogues are read strictly, and come back from the ledger as they were."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import catalogue as catalogues
from core.catalogue import ActionType, Limit, PointsLimit
from core.errors import Refused
from tests.core.examples import cases, example

CASES = cases("catalogue")


@pytest.mark.parametrize("case", CASES)
def test_a_golden_catalogue_has_its_digest(case):
    catalogue = catalogues.read(case["toml"].encode())

    assert catalogue.sha256 == case["sha256"]
    assert hashlib.sha256(case["canonical"].encode()).hexdigest() == case["sha256"]
    assert catalogue.body == json.loads(case["canonical"])


@pytest.mark.parametrize("case", CASES)
def test_a_catalogue_read_back_as_json_is_the_same_whatever_became_of_the_order_of_its_keys(case):
    written = catalogues.read(case["toml"].encode())
    stored = json.loads(json.dumps(written.body), object_pairs_hook=_shuffled)

    back = catalogues.from_body(stored)

    assert back == written
    assert list(back.types) == list(written.types)


def _shuffled(pairs: list[tuple[str, object]]) -> dict[str, object]:
    random.Random(len(pairs)).shuffle(pairs)
    return dict(reversed(pairs))


def test_the_shipped_catalogue_is_that_of_the_interface():
    shipped = catalogues.read(catalogues.shipped())
    written = example("catalogue", "of-the-interface")

    assert shipped.sha256 == written["sha256"]
    assert shipped.version == "2026-11-21"
    assert shipped.types == {
        "level_complete": ActionType("level_complete", 10, None, None, 0, 0, (Limit(60_000_000, 30, 60),)),
        "client_points": ActionType("client_points", None, 1, 1000, 0, 0, ()),
        "commit": ActionType("commit", 1, None, None, 0, 0, ()),
    }
    assert shipped.points_limits == (
        PointsLimit("points", frozenset({"level_complete", "client_points"}), 3_600_000_000, 5000, 50000),
    )


def test_seconds_and_milliseconds_become_microseconds():
    catalogue = catalogues.read(b'version = "1"\n[types.a]\npoints = 1\ncooldown_s = 2\nmin_gap_ms = 250\n')

    assert catalogue.types["a"].cooldown_us == 2_000_000
    assert catalogue.types["a"].min_gap_us == 250_000


@pytest.mark.parametrize(
    ("type_name", "client_points", "worth"),
    [
        pytest.param("level_complete", None, 10, id="catalogue points"),
        pytest.param("level_complete", 999, 10, id="catalogue points, whatever the client says"),
        pytest.param("client_points", 7, 7, id="client points"),
        pytest.param("client_points", 5000, 5000, id="client points out of bounds"),
        pytest.param("client_points", None, 0, id="client points missing"),
        pytest.param("unheard_of", 7, 0, id="unknown type"),
    ],
)
def test_an_action_is_worth_what_its_type_says(type_name, client_points, worth):
    catalogue = catalogues.read(catalogues.shipped())

    assert catalogue.worth(type_name, client_points) == worth


TYPE = "[types.a]\npoints = 1\n"
REFUSED = [
    ("a key nobody knows", f'version = "1"\nverison = "2"\n{TYPE}', "verison"),
    ("a key of a type nobody knows", f'version = "1"\n{TYPE}cooldown = 1\n', "types.a.cooldown "),
    (
        "a misspelt limit",
        f'version = "1"\n{TYPE}[[types.a.limit]]\nwindow_s = 1\nhard = 1\n',
        "types.a.limit ",
    ),
    ("no version", TYPE, "version"),
    ("an empty version", f'version = ""\n{TYPE}', "version"),
    ("a long version", f'version = "{"1" * 65}"\n{TYPE}', "version"),
    ("a version that is a date", f"version = 2026-11-21\n{TYPE}", "version"),
    ("a version that is a number", f"version = 1\n{TYPE}", "version"),
    ("a version over two lines", f'version = "1\\n2"\n{TYPE}', "version"),
    ("no types", 'version = "1"\n', "types is missing"),
    ("types without one", 'version = "1"\n[types]\n', "types must have"),
    ("types that are no table", 'version = "1"\ntypes = 1\n', "types must be a table"),
    ("a type that is no table", 'version = "1"\n[types]\na = 1\n', "types.a must be a table"),
    ("a type with a capital", 'version = "1"\n[types.A]\npoints = 1\n', "types.A:"),
    ("a type with a dash", 'version = "1"\n[types.a-b]\npoints = 1\n', "types.a-b:"),
    ("a long type", f'version = "1"\n[types.{"a" * 65}]\npoints = 1\n', "aaa:"),
    ("an empty type", 'version = "1"\n[types.""]\npoints = 1\n', "types.:"),
    ("a type worth nothing said", 'version = "1"\n[types.a]\n', "types.a must have"),
    ("points and bounds", f'version = "1"\n{TYPE}min = 1\nmax = 2\n', "types.a has points and min or max"),
    ("points and one bound", f'version = "1"\n{TYPE}max = 2\n', "types.a has points and min or max"),
    ("one bound", 'version = "1"\n[types.a]\nmin = 1\n', "types.a must have"),
    ("bounds the wrong way round", 'version = "1"\n[types.a]\nmin = 2\nmax = 1\n', "types.a.min"),
    ("points that are a float", 'version = "1"\n[types.a]\npoints = 1.0\n', "types.a.points"),
    ("points that are a boolean", 'version = "1"\n[types.a]\npoints = true\n', "types.a.points"),
    ("points that are a string", 'version = "1"\n[types.a]\npoints = "1"\n', "types.a.points"),
    ("points beyond 64 bits", f'version = "1"\n[types.a]\npoints = {2**63}\n', "types.a.points"),
    ("points of -2^63", f'version = "1"\n[types.a]\npoints = {-(2**63)}\n', "types.a.points"),
    ("a bound beyond 64 bits", f'version = "1"\n[types.a]\nmin = 1\nmax = {2**63}\n', "types.a.max"),
    ("a cooldown that is a float", f'version = "1"\n{TYPE}cooldown_s = 0.5\n', "types.a.cooldown_s"),
    ("a cooldown below zero", f'version = "1"\n{TYPE}cooldown_s = -1\n', "types.a.cooldown_s"),
    ("a cooldown of an age", f'version = "1"\n{TYPE}cooldown_s = {2**62}\n', "types.a.cooldown_s"),
    ("a gap below zero", f'version = "1"\n{TYPE}min_gap_ms = -1\n', "types.a.min_gap_ms"),
    ("limits that are no list", f'version = "1"\n{TYPE}limits = 1\n', "types.a.limits"),
    ("a limit that is no table", f'version = "1"\n{TYPE}limits = [1]\n', "types.a.limits.0"),
    (
        "a limit without a window",
        f'version = "1"\n{TYPE}limits = [{{ hard = 1 }}]\n',
        "types.a.limits.0.window_s",
    ),
    (
        "a window of nothing",
        f'version = "1"\n{TYPE}limits = [{{ window_s = 0, hard = 1 }}]\n',
        "limits.0.window_s",
    ),
    (
        "a window below zero",
        f'version = "1"\n{TYPE}limits = [{{ window_s = -1, hard = 1 }}]\n',
        "limits.0.window_s",
    ),
    (
        "a window that is a float",
        f'version = "1"\n{TYPE}limits = [{{ window_s = 1.5, hard = 1 }}]\n',
        "limits.0.window_s",
    ),
    (
        "a limit that limits nothing",
        f'version = "1"\n{TYPE}limits = [{{ window_s = 1 }}]\n',
        "types.a.limits.0 must have",
    ),
    (
        "soft above hard",
        f'version = "1"\n{TYPE}limits = [{{ window_s = 1, soft = 3, hard = 2 }}]\n',
        "limits.0.soft",
    ),
    ("soft below zero", f'version = "1"\n{TYPE}limits = [{{ window_s = 1, soft = -1 }}]\n', "limits.0.soft"),
    (
        "hard beyond 64 bits",
        f'version = "1"\n{TYPE}limits = [{{ window_s = 1, hard = {2**63} }}]\n',
        "limits.0.hard",
    ),
    (
        "a second limit that is wrong",
        f'version = "1"\n{TYPE}limits = [{{ window_s = 1, hard = 1 }}, {{ window_s = 1, hrad = 1 }}]\n',
        "types.a.limits.1.hrad",
    ),
    (
        "a points limit without types",
        f'version = "1"\n{TYPE}[limits.p]\nwindow_s = 1\nhard = 1\n',
        "limits.p.types",
    ),
    (
        "a points limit over no type",
        f'version = "1"\n{TYPE}[limits.p]\ntypes = []\nwindow_s = 1\nhard = 1\n',
        "limits.p.types",
    ),
    (
        "a points limit over a type nobody knows",
        f'version = "1"\n{TYPE}[limits.p]\ntypes = ["a", "b"]\nwindow_s = 1\nhard = 1\n',
        "limits.p.types names 'b'",
    ),
    (
        "a points limit over a number",
        f'version = "1"\n{TYPE}[limits.p]\ntypes = [1]\nwindow_s = 1\nhard = 1\n',
        "limits.p.types",
    ),
    (
        "a points limit over a list",
        f'version = "1"\n{TYPE}[limits.p]\ntypes = [["a"]]\nwindow_s = 1\nhard = 1\n',
        "limits.p.types",
    ),
    (
        "a type listed twice",
        f'version = "1"\n{TYPE}[limits.p]\ntypes = ["a", "a"]\nwindow_s = 1\nhard = 1\n',
        "limits.p.types",
    ),
    (
        "a points limit that limits nothing",
        f'version = "1"\n{TYPE}[limits.p]\ntypes = ["a"]\nwindow_s = 1\n',
        "limits.p must have",
    ),
    (
        "a points limit with a strange name",
        f'version = "1"\n{TYPE}[limits."p q"]\ntypes = ["a"]\nwindow_s = 1\nhard = 1\n',
        "limits.p q",
    ),
    ("limits that are no table", f'version = "1"\nlimits = 1\n{TYPE}', "limits must be a table"),
    ("no TOML", "version = \n", "not TOML"),
    ("nothing", "", "types"),
    ("a key given twice", f'version = "1"\nversion = "2"\n{TYPE}', "not TOML"),
    ("tables without end", "a = " + "[" * 100_000, "not TOML"),
]


@pytest.mark.parametrize(("toml", "named"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_a_mistake_is_refused_and_named(toml, named):
    with pytest.raises(Refused) as refusal:
        catalogues.read(toml.encode())

    assert refusal.value.code == "invalid_catalogue"
    assert named in refusal.value.detail


def test_bytes_that_are_no_utf_8_are_refused():
    with pytest.raises(Refused, match="UTF-8"):
        catalogues.read(b'version = "\xff"')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aé \x00\ud800", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["types", "limits", "a", "points", "min", "max", "window_s", "soft", "hard"])
            | st.text("aé \x00\ud800", max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("version", "types", "limits", "else"), json_values))
    | st.fixed_dictionaries(
        {
            "version": st.just("1"),
            "types": st.fixed_dictionaries(
                {
                    "a": st.fixed_dictionaries(
                        {"points": json_values},
                        optional=dict.fromkeys(("cooldown_s", "min_gap_ms", "limits"), json_values),
                    )
                }
            ),
            "limits": st.fixed_dictionaries({}, optional={"p": json_values}),
        }
    )
)
def test_any_body_is_read_or_refused_and_nothing_else(body):
    try:
        catalogue = catalogues.from_body(body)
    except Refused:
        return

    assert catalogues.from_body(catalogue.body) == catalogue
