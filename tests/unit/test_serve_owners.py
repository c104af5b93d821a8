"""What a client keeps is its own: others can neither ask about it nor drop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from browser_page import picture
from drawn_service import DrawnService, drawn_app
from fastapi.testclient import TestClient

import samforge
from samforge.apps.serve.door import Tokens
from samforge.core.errors import NotHere
from samforge.serving import Picture, Served, Service, Settings
from samforge.serving.kept import _ENTRY_BYTES, Kept, KeptAnswer

PNG = picture()
ANNA, BEN = ({"authorization": f"Bearer {name}"} for name in ("anna's token", "ben's token"))


@pytest.fixture
def service() -> DrawnService:
    return DrawnService()


@pytest.fixture
def client(service: DrawnService) -> Iterator[httpx.Client]:
    tokens = Tokens(by_name={"anna": "anna's token", "ben": "ben's token"})
    with TestClient(drawn_app(service, tokens), raise_server_exceptions=False) as one:
        yield one  # type: ignore[misc]  # it is one of httpx


def kept_by(client: httpx.Client, headers: dict[str, str]) -> str:
    answer = client.post("/v1/images", files={"image": PNG}, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["image_id"])


def test_an_id_of_somebody_else_is_none(client: httpx.Client, service: DrawnService) -> None:
    number = kept_by(client, ANNA)
    body: dict[str, Any] = {"text": "star"}
    own = client.post(f"/v1/images/{number}/segment", json=body, headers=ANNA)
    assert len(own.json()["detections"]) == 2
    asked = len(service.asks)
    foreign = (
        client.post(f"/v1/images/{number}/segment", json=body, headers=BEN),
        client.post("/v1/segment", json={**body, "image_id": number}, headers=BEN),
        client.delete(f"/v1/images/{number}", headers=BEN),
    )
    made_up = client.delete(f"/v1/images/{'0' * 32}", headers=BEN)
    for answer in (*foreign, made_up):
        assert answer.status_code == 404
        # An id of another's reads like one of nobody's: ids cannot be tried out.
        words = answer.json()["detail"].replace(number, "ID").replace("0" * 32, "ID")
        assert words == made_up.json()["detail"].replace("0" * 32, "ID")
    assert len(service.asks) == asked
    assert client.delete(f"/v1/images/{number}", headers=ANNA).status_code == 204


def test_dropping_a_picture_leaves_that_of_others(
    client: httpx.Client, service: DrawnService
) -> None:
    anna, ben = kept_by(client, ANNA), kept_by(client, BEN)
    assert anna != ben
    assert client.delete(f"/v1/images/{anna}", headers=ANNA).status_code == 204
    assert len(service.pictures) == 1
    answer = client.post(f"/v1/images/{ben}/segment", json={"text": "star"}, headers=BEN)
    assert (answer.status_code, answer.json()["encoded"]) == (200, False)


def test_an_answer_of_somebody_else_cannot_be_corrected(client: httpx.Client) -> None:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    ask = {"objects": [{"points": [[100, 100]]}]}
    found = client.post("/v1/segment", files={"image": PNG}, data={"text": "star"}, headers=ANNA)
    assert found.status_code == 200
    service.answers.put("anna", "clicks", KeptAnswer(picture="", found=object()), 1)  # type: ignore[arg-type]
    number = next(iter(service.answers._kept))
    picture = kept_by(client, BEN)
    answer = client.post(
        f"/v1/images/{picture}/segment", json={**ask, "earlier": number}, headers=BEN
    )
    assert answer.status_code == 404
    assert "No answer is kept" in answer.json()["detail"]


def test_encodings_are_dropped_with_the_last_who_keeps_them(
    fake_bundle: Callable[..., samforge.Bundle],
) -> None:
    served = Served(name="one", path=fake_bundle("owned").root)
    service, dropped = Service(Settings(bundles=(served,))), list[str]()
    scheduler = SimpleNamespace(forget=dropped.append, close=lambda: None)
    service.model().scheduler = scheduler  # type: ignore[assignment]
    one = Picture.of(PNG)
    anna, ben = (service.pictures.put(name, one.key, one, 1) for name in ("anna", "ben"))
    with pytest.raises(NotHere):
        service.forget("ben", anna)
    service.forget("anna", anna)
    assert dropped == []
    service.forget("ben", ben)
    assert dropped == [one.key]
    service.close()


def test_ids_are_of_one_owner() -> None:
    kept: Kept[str] = Kept(10_000, "picture")
    size = 10 + _ENTRY_BYTES
    one, other = (kept.put(owner, "a", "it", 10) for owner in ("anna", "ben"))
    assert (kept.get("anna", one), kept.get("ben", other), kept.nbytes) == ("it", "it", 2 * size)
    for owner, number in (("anna", other), ("ben", one), ("", one), ("anna", "made up")):
        with pytest.raises(NotHere):
            kept.get(owner, number)
        with pytest.raises(NotHere):
            kept.drop(owner, number)
    assert kept.drop("anna", one) == "it"
    assert (kept.holds("a"), kept.holds("b"), kept.nbytes) == (True, False, size)
    assert kept.drop("ben", other) == "it"
    assert (kept.holds("a"), len(kept), kept.nbytes) == (False, 0, 0)


def test_things_of_no_size_are_counted_too() -> None:
    """Millions of pictures of a hundred bytes would be gigabytes of ids and names."""
    kept: Kept[bytes] = Kept(20 * _ENTRY_BYTES, "picture")
    for number in range(100):
        kept.put("anna", str(number), b"", 0)
    assert len(kept) == 20
    assert kept.nbytes == 20 * _ENTRY_BYTES
