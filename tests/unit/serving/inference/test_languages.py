"""The language of texts: what is surely foreign, and what isn't sure."""

import pytest

from registry.data.held_out import HeldOutSet
from serving.inference.languages import identify_language

FOREIGN = {
    "Der Akku ist schnell leer": "de",
    "Das Paket kam einen Tag früher an, danke.": "de",
    "La habitación estaba impecable": "es",
    "El servicio fue muy lento y la comida estaba fría": "es",
    "Je ne recommande pas ce produit": "fr",
    "Non lo consiglio a nessuno": "it",
    "O atendimento foi péssimo": "pt",
    "Ik ben erg tevreden": "nl",
    "バッテリーの減りが早い": "ja",
    "电池很快就没电了": "zh",
    "البطارية تنفد بسرعة": "ar",
    "Батарея быстро садится": "ru",
    "배터리가 빨리 닳아요": "ko",
    "Pil çok çabuk bitiyor": "tr",
}
UNSURE = [
    "ok",
    "Nice!",
    "lol",
    "5/5",
    "👍",
    "👎👎👎",
    "🇩🇪🇫🇷",
    "!!!",
    "x" * 300,
    "Order 48213.",
    "http://example.com/a",
]


# The classifier takes the first for Khmer, and finds the second more like Afrikaans than like English.
UNSURE += ["\u200b\u200b", "word " * 400, "١٢٣"]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_text_in_another_language_is_foreign_and_named(text: str) -> None:
    result = identify_language(text, ["en"])
    assert (result.language, result.foreign) == (FOREIGN[text], True)


@pytest.mark.parametrize("text", UNSURE)
def test_an_unsure_guess_is_neither_named_nor_foreign(text: str) -> None:
    result = identify_language(text, ["en"])
    assert (result.language, result.foreign) == ("und", False)


def test_english_is_hardly_ever_taken_for_something_else() -> None:
    texts = [example.text for example in HeldOutSet.load_builtin().examples]
    for shown in (str, str.upper, str.lower):
        results = [identify_language(shown(text), ["en"]) for text in texts]
        assert sum(each.foreign for each in results) / len(texts) < 0.005
        assert sum(each.language == "en" for each in results) / len(texts) > 0.9


def test_no_known_language_is_foreign_however_its_tag_is_written() -> None:
    german = "Der Akku ist schnell leer"
    for known in (["de"], ["de-AT", "en"], ["en", "DE"]):
        result = identify_language(german, known)
        assert (result.language, result.foreign) == ("de", False)
    assert identify_language("The battery lasts for days.", ["de"]).foreign


def test_nothing_is_foreign_to_a_version_of_which_no_language_is_said_or_none_that_can_be_told() -> None:
    for known in ([], ["tlh"]):
        result = identify_language("Der Akku ist schnell leer", known)
        assert (result.language, result.foreign) == ("de", False)


def test_a_long_text_is_told_by_its_beginning() -> None:
    assert (
        identify_language("The battery lasts for days. " * 30 + "Der Akku ist leer. " * 900, ["en"]).language
        == "en"
    )
