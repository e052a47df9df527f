"""Bundles open only if every byte agrees with the manifest."""

import json
from pathlib import Path

import pytest

from registry.bundles.bundle import LABELS, MANIFEST, Bundle, BundleKind, Manifest
from registry.errors import BundleCorrupt, BundleInvalid


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "head"
    (folder / "deep").mkdir(parents=True)
    (folder / "head.safetensors").write_bytes(b"weights")
    (folder / "deep" / "note.txt").write_text("note")
    return Bundle.seal(folder, Manifest(kind=BundleKind.HEAD, name="a head", encoder="e" * 64, labels=LABELS))


def rewrite(bundle: Bundle, **changes: object) -> None:
    file = bundle.path / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_sealed_bundle_opens_as_it_was(bundle: Bundle) -> None:
    assert Bundle.open(bundle.path) == bundle
    assert set(bundle.manifest.files) == {"head.safetensors", "deep/note.txt"}


def test_equal_content_has_an_equal_digest_whatever_the_order(bundle: Bundle) -> None:
    settings = {"b": 1, "a": [1, 2]}
    first = Manifest(kind=BundleKind.LEXICON, name="x", labels=LABELS, settings=settings)
    second = Manifest(
        kind=BundleKind.LEXICON, name="x", labels=LABELS, settings=dict(reversed(settings.items()))
    )
    assert first.digest == second.digest != bundle.digest


def test_changed_file_is_refused_by_name_with_both_digests(bundle: Bundle) -> None:
    expected = bundle.manifest.files["deep/note.txt"]
    (bundle.path / "deep" / "note.txt").write_text("forged")
    with pytest.raises(BundleCorrupt, match=r"deep/note\.txt") as caught:
        Bundle.open(bundle.path)
    assert caught.value.path == bundle.path / "deep" / "note.txt"
    assert caught.value.expected == expected
    assert caught.value.actual in str(caught.value)


def test_missing_file_is_refused_by_name(bundle: Bundle) -> None:
    (bundle.path / "head.safetensors").unlink()
    with pytest.raises(BundleInvalid, match=r"head\.safetensors"):
        Bundle.open(bundle.path)


def test_changed_manifest_is_refused(bundle: Bundle) -> None:
    rewrite(bundle, temperature=2.5)
    with pytest.raises(BundleCorrupt, match=r"manifest\.json"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "", "a\\..\\b"])
def test_path_out_of_the_bundle_is_refused(bundle: Bundle, name: str) -> None:
    rewrite(bundle, files={name: "0" * 64})
    with pytest.raises(BundleInvalid, match="plain path"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"kind": "pickle"},
        {"labels": ["bad", "good"]},
        {"files": {"a": "not a digest"}},
        {"files": ["a"]},
        {"temperature": "hot"},
        {"digest": None},
    ],
)
def test_malformed_manifest_is_refused(bundle: Bundle, changes: dict[str, object]) -> None:
    rewrite(bundle, **changes)
    with pytest.raises(BundleInvalid):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "\udcff"])
def test_what_is_no_manifest_is_refused(bundle: Bundle, content: str) -> None:
    (bundle.path / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleInvalid):
        Bundle.open(bundle.path)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"manifest\.json"):
        Bundle.open(tmp_path)


def test_moving_onto_an_equal_bundle_keeps_it_and_onto_another_fails(bundle: Bundle, tmp_path: Path) -> None:
    copies = []
    for name, text in (("one", "x"), ("two", "x"), ("three", "y")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_text(text)
        copies.append(Bundle.seal(folder, Manifest(kind=BundleKind.LEXICON, name="l", labels=LABELS)))
    there = copies[0].move_to(tmp_path / "there")
    assert copies[1].move_to(tmp_path / "there") == there
    with pytest.raises(BundleInvalid, match="another bundle"):
        copies[2].move_to(tmp_path / "there")


def test_file_that_the_manifest_does_not_name_is_not_given(bundle: Bundle) -> None:
    (bundle.path / "stray").write_text("x")
    with pytest.raises(BundleInvalid, match="stray"):
        bundle.file("stray")
