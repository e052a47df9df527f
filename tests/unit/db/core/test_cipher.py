"""Sealed values: opened in their place with their key, refused anywhere else; and the setting with the keys."""

import base64
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.cipher import (
    BadTextKeys,
    Cipher,
    answer_location,
    comment_location,
    generate_text_key,
    text_location,
)
from db.errors import Unreadable

ONE, TWO = b"1" * 32, b"2" * 32
TEXT = UUID(int=7)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def encoded(key: bytes) -> str:
    return base64.b64encode(key).decode()


def sealed(cipher: Cipher, place: str, value: bytes) -> bytes:
    result = cipher.seal(place, value)
    assert result is not None
    return result


@given(TEXTS)
def test_whatever_is_sealed_is_read_again_and_stands_nowhere_in_it(text: str) -> None:
    cipher = Cipher({"one": ONE})
    stored = sealed(cipher, text_location(TEXT), text.encode())
    assert cipher.read(text_location(TEXT), "", stored) == text
    assert len(stored) == len(text.encode()) + 2 + len("one") + 12 + 16
    assert len(text.encode()) < 4 or text.encode() not in stored.removeprefix(cipher.prefix or b"")


def test_the_same_text_is_sealed_otherwise_each_time() -> None:
    cipher = Cipher({"one": ONE})
    assert len({sealed(cipher, text_location(TEXT), b"same") for _ in range(100)}) == 100


def test_the_first_key_seals_and_every_key_opens() -> None:
    before, after = Cipher({"one": ONE}), Cipher({"two": TWO, "one": ONE})
    old, new = (sealed(cipher, text_location(TEXT), b"so good") for cipher in (before, after))
    assert (before.sealing_key, after.sealing_key) == ("one", "two")
    assert after.prefix is not None
    assert new.startswith(after.prefix)
    assert not old.startswith(after.prefix)
    assert after.open(text_location(TEXT), old) == after.open(text_location(TEXT), new) == b"so good"


def test_without_keys_and_with_plain_before_them_nothing_is_sealed() -> None:
    for setting in ("", " ", f"plain, one:{encoded(ONE)}"):
        cipher = Cipher.parse(setting)
        assert cipher.seal(text_location(TEXT), b"so good") is None
        assert cipher.read(text_location(TEXT), "so good", None) == "so good"
    assert not Cipher.parse("").has_keys
    withdrawn = Cipher.parse(f"plain,one:{encoded(ONE)}")
    assert withdrawn.has_keys
    assert (
        withdrawn.open(text_location(TEXT), sealed(Cipher({"one": ONE}), text_location(TEXT), b"old"))
        == b"old"
    )


def test_a_text_that_looks_sealed_is_a_text() -> None:
    cipher = Cipher({"one": ONE})
    looks = sealed(cipher, text_location(TEXT), b"so good").decode("latin-1")
    assert cipher.read(text_location(TEXT), looks, None) == looks
    assert cipher.read(text_location(TEXT), "", sealed(cipher, text_location(TEXT), looks.encode())) == looks


def test_a_value_of_another_row_or_column_is_refused_by_name() -> None:
    cipher, other = Cipher({"one": ONE}), UUID(int=8)
    places = [
        text_location(TEXT),
        text_location(other),
        comment_location(TEXT, other),
        comment_location(other, TEXT),
        answer_location(TEXT, "/v1", "predict"),
        answer_location(TEXT, "/v1\0", "predict"),
        answer_location(other, "/v1", "predict"),
    ]
    assert len(set(places)) == len(places)
    for at in places:
        for other_place in places:
            value = sealed(cipher, at, b"mine")
            if other_place == at:
                assert cipher.open(other_place, value) == b"mine"
            else:
                with pytest.raises(Unreadable, match="moved here"):
                    cipher.open(other_place, value)
    with pytest.raises(Unreadable, match=str(other)):
        cipher.open(text_location(other), sealed(cipher, text_location(TEXT), b"mine"))


def test_a_change_of_any_byte_is_refused() -> None:
    cipher = Cipher({"one": ONE, "onf": TWO})
    value = sealed(cipher, text_location(TEXT), b"so good")
    for at in range(len(value)):
        changed = bytearray(value)
        changed[at] ^= 1
        with pytest.raises(Unreadable, match=str(TEXT)):
            cipher.open(text_location(TEXT), bytes(changed))
    for length in range(len(value)):
        with pytest.raises(Unreadable, match=str(TEXT)):
            cipher.open(text_location(TEXT), value[:length])


def test_another_key_is_refused_by_the_name_of_the_one_that_is_wanted() -> None:
    value = sealed(Cipher({"one": ONE}), text_location(TEXT), b"so good")
    for cipher in (Cipher(), Cipher({"two": TWO})):
        with pytest.raises(Unreadable, match="under the key one, which VALENCE_TEXT_KEYS doesn't give"):
            cipher.open(text_location(TEXT), value)
    with pytest.raises(Unreadable, match="changed"):
        Cipher({"one": TWO}).open(text_location(TEXT), value)


def test_a_refused_answer_is_named_without_what_the_client_called_it() -> None:
    cipher = Cipher({"one": ONE})
    with pytest.raises(Unreadable) as refused:
        cipher.open(answer_location(TEXT, "/v1/predict", "a secret"), sealed(cipher, "elsewhere", b"x"))
    assert str(TEXT) in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_fresh_key_is_what_the_setting_takes() -> None:
    results = {generate_text_key("2026-11-25") for _ in range(3)}
    assert len(results) == 3
    for key in results:
        assert Cipher.parse(key).sealing_key == "2026-11-25"
    with pytest.raises(BadTextKeys, match="letters, digits"):
        generate_text_key("a:b")
    with pytest.raises(BadTextKeys, match="plain"):
        generate_text_key("plain")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (encoded(ONE), "key 1: there is no `id:`"),
        ("one:", "one has 0 bytes instead of 32"),
        (f"one:{encoded(ONE[:16])}", "one has 16 bytes instead of 32"),
        (f"one:{ONE.hex()}", "one has 48 bytes instead of 32"),
        ("one:hush hush", "key 1: the part after `one:` is not base64"),
        (f"one:{encoded(ONE)},", "key 2: there is no `id:`"),
        (f"one:{encoded(ONE)},one:{encoded(TWO)}", "two keys with the id one"),
        (f"one:{encoded(ONE)},two:{encoded(ONE)}", "the key two twice"),
        (f":{encoded(ONE)}", "an id is 1 to 32 letters"),
        (f"{'x' * 33}:{encoded(ONE)}", "an id is 1 to 32 letters"),
        (f"naïve:{encoded(ONE)}", "an id is 1 to 32 letters"),
        (f"plain:{encoded(ONE)}", "isn't `plain`"),
        ("plain", "unset it"),
        (f"one:{encoded(ONE)},plain", "key 2: there is no `id:`"),
    ],
)
def test_a_setting_that_is_wrong_is_refused_with_its_place_and_without_the_key(
    setting: str, says: str
) -> None:
    with pytest.raises(BadTextKeys) as refused:
        Cipher.parse(setting)
    message = str(refused.value)
    assert says in message
    assert not [secret for secret in (encoded(ONE), encoded(TWO), ONE.hex(), "hush") if secret in message]


def test_keys_are_known_again_by_fingerprints_that_tell_nothing_of_them() -> None:
    cipher = Cipher({"one": ONE, "two": TWO})
    assert Cipher({"other": ONE}).fingerprints["other"] == cipher.fingerprints["one"]
    assert len(set(cipher.fingerprints.values())) == 2
    assert all(len(value) == 16 for value in cipher.fingerprints.values())
    assert ONE not in repr(vars(cipher)).encode()
