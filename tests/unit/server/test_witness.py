"""The server as a witness: old, forked and foreign ledgers are named, and no site can make another look guilty."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from client.contract import MAX_HEADS, Update
from privacy.budget import LedgerSpending
from privacy.claim import Claim
from privacy.errors import PlanError, RefusalCode
from privacy.heads import Head
from privacy.ledger import Ledger
from privacy.signing import SigningKey, generate_key
from server import witness as module
from server.admission import RejectionCode
from server.witness import Witness
from tests.support.ledger_cases import MODEL, SALT, Hospital, hospital, plan, refused, work
from tests.support.site_ledgers import POLICY

SITES = ("site-1", "site-2", "site-3")
PLAN = plan(0.1)


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Hospital]:
    """Three hospitals with a ledger each."""
    return {name: hospital(tmp_path / name, dataset=name) for name in SITES}


@pytest.fixture
def witness() -> Witness:
    return Witness(SITES)


def answer(site: str, at: Hospital, number: int, heads: Sequence[Head], run: str = "study") -> Update:
    """Return the update of an honest site for a request with these heads."""
    spending, asked = LedgerSpending(at.ledger, POLICY), work(number, run)
    spending.check(heads)
    update_hash = f"{number:064x}"
    spending.reserve(asked, PLAN, model=MODEL)
    spending.commit(asked, PLAN.steps, update_hash)
    return Update(
        site=site,
        run_id=run,
        round=number,
        base_hash=asked.base,
        update_hash=update_hash,
        claim=Claim(site=site, unit="patient", delta=1e-5, kind="dp", releases=spending.history(run)),
        delta={"w": np.zeros(1, np.float32)},
        receipt=spending.receipt(asked, heads),
        heads=spending.witness(heads)[:MAX_HEADS],
    )


def play(witness: Witness, sites: dict[str, Hospital], number: int, *, run: str = "study") -> None:
    """One honest round: every update is admitted."""
    for site, at in sites.items():
        update = answer(site, at, number, witness.heads_for(site, number), run)
        assert witness.fault(site, update) is None
        witness.take(site, update)


def head(size: int, key: SigningKey, *, dataset: str = "e" * 64, root: str = "d" * 64) -> Head:
    """Return a signed head of somebody's own making."""
    bare = Head(dataset=dataset, root=root, size=size, time=0, tip="c" * 64, key=key.public)
    return dataclasses.replace(bare, signature=key.sign("ledger-head", bare.statement()))


def kept(witness: Witness, site: str) -> Head:
    """Return what is kept of a site."""
    return Head.from_dict(witness.state()[site][0])


def test_honest_rounds_are_admitted_and_their_heads_kept(witness: Witness, sites: dict[str, Hospital]):
    for number in range(1, 6):
        play(witness, sites, number)
    for site, at in sites.items():
        assert kept(witness, site) == at.ledger.head()
        others = {other.ledger.state().genesis.dataset for name, other in sites.items() if name != site}
        assert {
            each.dataset for each in at.ledger.witnessed()
        } == others  # each site is a witness of both others
        assert min(each.size for each in at.ledger.witnessed()) >= 9  # what they had at the end of round 4


def test_a_site_without_a_ledger_sends_no_receipt_and_one_that_sent_one_has_to_go_on(
    witness: Witness, sites: dict[str, Hospital]
):
    update = answer("site-1", sites["site-1"], 1, ())
    bare = dataclasses.replace(update, receipt=None)
    assert witness.fault("site-1", bare) is None
    witness.take("site-1", bare)
    assert witness.fault("site-1", bare) is None
    witness.take("site-1", update)
    assert witness.fault("site-1", bare) is RejectionCode.RECEIPT_MISSING
    assert witness.fault("site-2", bare) is None


def test_an_invalid_receipt_is_named(witness: Witness, sites: dict[str, Hospital]):
    update = answer("site-1", sites["site-1"], 1, ())
    assert update.receipt is not None
    for receipt in (
        dataclasses.replace(update.receipt, head=dataclasses.replace(update.receipt.head, size=4)),
        dataclasses.replace(update.receipt, commit=update.receipt.reserve),
    ):
        changed = dataclasses.replace(update, receipt=receipt)
        assert witness.fault("site-1", changed) is RejectionCode.RECEIPT_INVALID


@pytest.mark.parametrize(
    "change", [{"run_id": "other"}, {"round": 2}, {"base_hash": "0" * 64}, {"update_hash": "0" * 64}]
)
def test_the_receipt_of_another_update_is_named(witness: Witness, sites: dict[str, Hospital], change):
    update = answer("site-1", sites["site-1"], 1, ())
    assert witness.fault("site-1", update) is None
    assert witness.fault("site-1", dataclasses.replace(update, **change)) is RejectionCode.RECEIPT_OTHER


def test_the_receipt_of_another_site_is_of_no_use(witness: Witness, sites: dict[str, Hospital]):
    theirs = answer("site-2", sites["site-2"], 1, ())
    mine = dataclasses.replace(answer("site-1", sites["site-1"], 1, ()), receipt=theirs.receipt)
    mine = dataclasses.replace(mine, update_hash="f" * 64)  # another update than the one they paid for
    assert witness.fault("site-1", mine) is RejectionCode.RECEIPT_OTHER


def test_less_claimed_than_paid_for_is_named(witness: Witness, sites: dict[str, Hospital]):
    update = answer("site-1", sites["site-1"], 1, ())
    smaller = dataclasses.replace(update.claim, releases=(plan(0.01).release(),))
    assert witness.fault("site-1", dataclasses.replace(update, claim=smaller)) is RejectionCode.CLAIM
    more = dataclasses.replace(update.claim, releases=(plan(0.01).release(), PLAN.release()))
    assert witness.fault("site-1", dataclasses.replace(update, claim=more)) is None


def restored(at: Hospital, path: Path, backup: Path) -> Hospital:
    """Put an older copy back."""
    at.ledger.close()
    shutil.copyfile(backup, path)
    return dataclasses.replace(at, ledger=Ledger.open(path, key=at.key, salt=SALT))


def test_an_older_copy_refuses_by_itself_and_is_named_if_it_does_not(
    witness: Witness, sites: dict[str, Hospital], tmp_path: Path
):
    one = {"site-1": sites["site-1"]}
    play(witness, one, 1)
    shutil.copyfile(one["site-1"].path, tmp_path / "backup")
    play(witness, one, 2)
    play(witness, one, 3)
    old = restored(one["site-1"], one["site-1"].path, tmp_path / "backup")
    with refused(RefusalCode.ROLLED_BACK):
        answer("site-1", old, 4, witness.heads_for("site-1", 4))
    dishonest = answer("site-1", old, 4, ())  # software that does not look at the heads
    assert witness.fault("site-1", dishonest) is RejectionCode.ROLLED_BACK
    answer("site-1", old, 5, ())
    longer = answer("site-1", old, 6, ())
    assert witness.fault("site-1", longer) is RejectionCode.FORKED
    assert kept(witness, "site-1").size == 7


def test_another_ledger_of_the_same_key_is_a_fork(
    witness: Witness, sites: dict[str, Hospital], tmp_path: Path
):
    one = {"site-1": sites["site-1"]}
    shutil.copyfile(one["site-1"].path, tmp_path / "fork.sqlite")
    play(witness, one, 1)
    fork = dataclasses.replace(
        one["site-1"], ledger=Ledger.open(tmp_path / "fork.sqlite", key=one["site-1"].key, salt=SALT)
    )
    for number in (1, 2, 3):
        answer("site-1", fork, number, (), run="secret study")
    forked = answer("site-1", fork, 2, ())
    assert witness.fault("site-1", forked) is RejectionCode.FORKED


def test_another_key_without_a_rotation_is_a_fork(
    witness: Witness, sites: dict[str, Hospital], tmp_path: Path
):
    play(witness, {"site-1": sites["site-1"]}, 1)
    anew = hospital(tmp_path / "anew", dataset="site-1")
    for number in (1, 2):
        update = answer("site-1", anew, number, ())
    assert witness.fault("site-1", update) is RejectionCode.FORKED


def test_a_rotated_key_goes_on(witness: Witness, sites: dict[str, Hospital]):
    play(witness, sites, 1)
    sites["site-1"].ledger.rotate_key(generate_key())
    play(witness, sites, 2)
    assert kept(witness, "site-1").key != sites["site-1"].key.public
    play(witness, sites, 3)


# --- heads that are handed around -------------------------------------------------------------------------


def test_what_a_site_spent_in_another_study_is_learnt_from_its_peers(
    witness: Witness, sites: dict[str, Hospital]
):
    other = Witness(SITES)  # the server of another study of the same hospitals
    play(witness, sites, 1)
    play(other, sites, 1, run="other")
    play(other, sites, 2, run="other")
    ahead = kept(other, "site-1")
    assert ahead.size > kept(witness, "site-1").size
    play(witness, {"site-2": sites["site-2"]}, 2)  # hands back what it witnessed there
    heads = witness.heads_for("site-1", 2)
    assert heads[0] == kept(witness, "site-1")
    assert ahead in heads


def test_an_honest_site_is_admitted_whatever_its_peers_have_seen_of_it_elsewhere(
    witness: Witness, sites: dict[str, Hospital]
):
    """It is asked with two heads of its own: the server's, and a larger one that a peer handed back."""
    other = Witness(SITES)
    play(witness, sites, 1)
    for number in (1, 2, 3):
        play(other, sites, number, run="other")
    play(witness, {"site-2": sites["site-2"]}, 2)
    assert (
        len([each for each in witness.heads_for("site-1", 2) if each.key == sites["site-1"].key.public]) == 2
    )
    play(witness, {"site-1": sites["site-1"]}, 2)
    play(witness, sites, 3)


def test_a_site_that_ignores_what_its_peers_have_seen_is_named(
    witness: Witness, sites: dict[str, Hospital], tmp_path: Path
):
    other = Witness(SITES)
    play(witness, sites, 1)
    shutil.copyfile(sites["site-1"].path, tmp_path / "backup")
    for number in (1, 2, 3):
        play(other, sites, number, run="other")
    play(witness, {"site-2": sites["site-2"]}, 2)
    old = restored(sites["site-1"], sites["site-1"].path, tmp_path / "backup")
    heads = witness.heads_for("site-1", 2)
    with refused(RefusalCode.ROLLED_BACK):
        answer("site-1", old, 2, heads)
    dishonest = answer("site-1", old, 2, heads[:1])  # as if only the server's own head had come
    assert witness.fault("site-1", dishonest) is RejectionCode.ROLLED_BACK


def test_a_lying_site_cannot_hurt_an_honest_one(witness: Witness, sites: dict[str, Hospital], tmp_path: Path):
    play(witness, sites, 1)
    honest, liar = sites["site-1"].ledger.head(), generate_key()
    lies = (
        head(1000, liar, dataset=honest.dataset),  # another key for the same dataset
        dataclasses.replace(head(1000, liar, dataset=honest.dataset), key=honest.key),  # not our signature
        dataclasses.replace(honest, size=1000),
        dataclasses.replace(honest, root="f" * 64),
        dataclasses.replace(honest, signature=""),
        sites["site-1"].ledger.head(),
    )
    lie = dataclasses.replace(
        answer("site-2", sites["site-2"], 2, witness.heads_for("site-2", 2)), heads=lies
    )
    assert witness.fault("site-2", lie) is None
    witness.take("site-2", lie)
    play(witness, {"site-1": sites["site-1"]}, 2)
    play(witness, {"site-3": sites["site-3"]}, 2)


def test_a_ledger_that_a_liar_began_for_the_dataset_of_another_hurts_nobody(
    witness: Witness, sites: dict[str, Hospital], tmp_path: Path
):
    """It may call its own dataset what it likes: its head goes round, and the honest site has to live with it."""
    imposter = hospital(tmp_path / "imposter", dataset="site-1", patients=["x"])
    assert imposter.ledger.head().dataset == sites["site-1"].ledger.head().dataset
    for number in range(50, 60):
        imposter.pay(work(number, "padding"), plan(0.01))
    play(witness, {"site-1": sites["site-1"], "site-2": imposter}, 1)
    play(witness, {"site-1": sites["site-1"], "site-2": imposter}, 2)
    play(witness, sites | {"site-2": imposter}, 3)


def test_the_largest_signed_head_of_each_ledger_is_remembered(witness: Witness, sites: dict[str, Hospital]):
    key, update = generate_key(), answer("site-1", sites["site-1"], 1, ())
    small, large, unsigned = head(2, key), head(5, key), dataclasses.replace(head(9, key), signature="")
    for heads in ([small], [large], [small], [unsigned]):
        witness.take("site-1", dataclasses.replace(update, heads=tuple(heads)))
    assert witness.state()[""] == [large.to_dict()]


def test_what_is_remembered_has_an_end(witness: Witness, sites: dict[str, Hospital], monkeypatch):
    monkeypatch.setattr(module, "MAX_HANDED", 3)
    key, update = generate_key(), answer("site-1", sites["site-1"], 1, ())
    for number in range(10):
        one = head(1, key, dataset=f"{number:064x}")
        witness.take("site-1", dataclasses.replace(update, heads=(one,)))
    witness.take("site-1", dataclasses.replace(update, heads=(head(7, key, dataset=f"{0:064x}"),)))
    assert [each["size"] for each in witness.state()[""]] == [7, 1, 1]


def test_a_request_holds_its_own_head_first_and_a_few_of_others_in_turn():
    names = [f"site-{number}" for number in range(1, 41)]
    keys = {name: generate_key() for name in names}
    ring = Witness(names)
    ring.restore(
        {
            name: [head(1, key, dataset=f"{number:064x}").to_dict()]
            for number, (name, key) in enumerate(keys.items())
        }
    )
    seen: set[str] = set()
    for round_ in range(1, 6):
        heads = ring.heads_for("site-1", round_)
        assert heads[0].key == keys["site-1"].public
        assert len(heads) == 1 + 16
        assert len({each.key for each in heads}) == len(heads)
        seen |= {each.key for each in heads[1:]}
    assert seen == {key.public for name, key in keys.items() if name != "site-1"}
    assert ring.heads_for("stranger", 1)[0].key != keys["site-1"].public


@pytest.mark.parametrize("count", [0, 1, 2, 16, 17, 18, 33])
def test_whose_heads_travel_is_what_a_walk_around_the_ring_of_the_others_gives(count: int):
    names = [f"site-{number:02d}" for number in range(40)]
    signed = [head(1, generate_key(), dataset=f"{number:064x}") for number in range(count)]
    kept = dict(zip(names[5:], signed, strict=False))
    ring = Witness(names)
    ring.restore({name: [one.to_dict()] for name, one in kept.items()})
    for round_ in range(1, 8):
        for site in ("site-00", "site-05", "site-21", "stranger"):
            others = [name for name in kept if name != site]
            start = round_ * 16 % max(1, len(others))
            walked = [kept[name] for name in (others[start:] + others[:start])[:16]]
            own = [kept[site]] if site in kept else []
            assert list(ring.heads_for(site, round_)) == [*own, *walked]


def test_a_site_whose_first_head_has_come_is_in_the_ring(witness: Witness, sites: dict[str, Hospital]):
    assert witness.heads_for("site-1", 1) == ()
    witness.take("site-2", answer("site-2", sites["site-2"], 1, ()))
    assert witness.heads_for("site-1", 2) == (kept(witness, "site-2"),)
    witness.take("site-3", answer("site-3", sites["site-3"], 1, ()))
    assert set(witness.heads_for("site-1", 3)) == {kept(witness, "site-2"), kept(witness, "site-3")}


def test_a_message_holds_no_more_heads_than_it_may(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_HEADS", 5)
    names = [f"site-{number}" for number in range(20)]
    ring = Witness(names)
    ring.restore(
        {name: [head(1, generate_key(), dataset=f"{ord(name[-1]):064x}").to_dict()] for name in names}
    )
    assert len(ring.heads_for("site-0", 1)) == 5


# --- checkpoints ------------------------------------------------------------------------------------------


def test_a_resumed_server_has_forgotten_nothing(witness: Witness, sites: dict[str, Hospital], tmp_path: Path):
    play(witness, sites, 1)
    shutil.copyfile(sites["site-1"].path, tmp_path / "backup")
    play(witness, sites, 2)
    resumed = Witness(SITES)
    resumed.restore(witness.state())
    assert resumed.state() == witness.state()
    assert resumed.heads_for("site-1", 3) == witness.heads_for("site-1", 3)
    play(resumed, sites, 3)
    old = restored(sites["site-1"], sites["site-1"].path, tmp_path / "backup")
    assert resumed.fault("site-1", answer("site-1", old, 4, ())) is RejectionCode.ROLLED_BACK


def test_a_server_of_before_there_were_ledgers_starts_with_nothing(witness: Witness):
    witness.restore({})
    assert witness.state() == {"": []}
    assert witness.heads_for("site-1", 1) == ()


@pytest.mark.parametrize("state", [{"site-1": [5]}, {"": [{"size": 1}]}, {"site-1": 5}, {"site-1": None}, []])
def test_a_checkpoint_of_something_else_is_refused(witness: Witness, sites: dict[str, Hospital], state):
    play(witness, sites, 1)
    before = witness.state()
    with pytest.raises(PlanError):
        witness.restore(state)
    assert witness.state() == before
