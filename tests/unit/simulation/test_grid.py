"""The grid gives ids, keeps the order it is asked in, answers each message once, and lets no exception's text out."""

import pytest
from flwr.app import MessageType
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run

from deploy.simulation.grid import InProcess, LocalGrid, make_contexts
from tests.support.apps import answer, make_echo, make_moody, question

SITES = ("north", "south", "west")


class _Counting:
    """A ClientApp that notes what it was asked."""

    def __init__(self):
        self.asked = []
        self._app = make_echo()

    def __call__(self, message, context):
        self.asked.append(answer(message)["i"])
        return self._app(message, context)


@pytest.fixture
def app():
    return _Counting()


@pytest.fixture
def grid(app):
    nodes = {site: node for node, site in enumerate(SITES, start=2)}
    return LocalGrid(SITES, InProcess(app, make_contexts(nodes)))


def test_nodes_are_numbered_in_the_order_of_the_sites(grid):
    assert grid.nodes == {"north": 2, "south": 3, "west": 4}
    assert grid.get_node_ids() == [2, 3, 4]


def test_a_message_reaches_the_site_of_its_node(grid):
    replies = grid.send_and_receive([question(node, i=node) for node in (4, 2)])
    assert [(answer(reply)["site"], answer(reply)["i"]) for reply in replies] == [("west", 4), ("north", 2)]
    assert [reply.metadata.src_node_id for reply in replies] == [4, 2]


def test_every_message_has_an_id_of_its_own_and_the_reply_names_it(grid):
    ids = grid.push_messages([question(2, i=0), question(2, i=1)])
    assert len(set(ids)) == 2
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids


def test_nothing_runs_before_it_is_pulled_and_then_in_the_order_of_the_pull(grid, app):
    first, second, third = grid.push_messages([question(node, i=node) for node in (2, 3, 4)])
    assert app.asked == []
    assert [answer(reply)["i"] for reply in grid.pull_messages([third, first])] == [4, 2]
    assert app.asked == [4, 2]
    grid.pull_messages([second])
    assert app.asked == [4, 2, 3]


def test_a_reply_is_given_once_and_a_strange_id_gets_none(grid, app):
    ids = grid.push_messages([question(2, i=0)])
    assert len(grid.pull_messages([*ids, "m77"])) == 1
    assert grid.pull_messages(ids) == []
    assert app.asked == [0]


def test_an_exception_becomes_an_error_reply_with_its_type_alone(tmp_path):
    (tmp_path / "now").touch()
    grid = LocalGrid(("north",), InProcess(make_moody(), make_contexts({"north": 2})))
    (reply,) = grid.send_and_receive([question(2, mood="raise", once=str(tmp_path / "now"))])
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "RuntimeError")
    assert "0815" not in str(reply)


def test_a_kind_of_message_that_the_app_does_not_know_is_an_error_reply(grid):
    strange = make_echo()
    grid = LocalGrid(("north",), InProcess(strange, make_contexts({"north": 2})))
    (reply,) = grid.send_and_receive([question(2, kind=MessageType.EVALUATE)])
    assert reply.has_error()


def test_what_was_not_pulled_is_forgotten_at_the_end(app):
    executor = InProcess(app, make_contexts({"north": 2}))
    ids = LocalGrid(("north",), executor).push_messages([question(2, i=0)])
    executor.close()
    assert executor.result(ids[0]) is None
    assert app.asked == []


def test_a_node_knows_its_site_and_nothing_else():
    contexts = make_contexts({"north": 2, "south": 3})
    assert {node: dict(context.node_config) for node, context in contexts.items()} == {
        2: {"site": "north"},
        3: {"site": "south"},
    }
    assert all(not context.run_config and not context.state for context in contexts.values())


def test_the_grid_works_for_the_run_it_is_given(grid):
    assert grid.run.run_id == 1
    grid.set_run(Run.create_empty(7))
    assert grid.run.run_id == 7


def test_flowers_older_way_to_make_a_message(grid):
    made = grid.create_message(question(3, i=5).content, MessageType.TRAIN, 3, "group")
    (reply,) = grid.send_and_receive([made], timeout=1.0)
    assert answer(reply)["i"] == 5
