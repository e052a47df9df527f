"""Function words are left out, each in its own language; texts without spaces have words too."""

import pytest

from registry.analysis.words import content_words

FUNCTION_WORDS_LEFT_OUT = {
    "The battery of my phone was empty and it had been new": {"battery", "phone", "empty", "new"},
    "Ich bin seit Jahren Kunde, aber der Akku ist leer": {"jahren", "kunde", "akku", "leer"},
    "La batería se descarga desde hace dos años": {"batería", "descarga", "años"},
    "Depuis trois jours la batterie est vide": {"trois", "jours", "batterie", "vide"},
    "La batteria è scarica da una settimana": {"batteria", "scarica", "settimana"},
    "A bateria do meu telefone não dura nada": {"bateria", "telefone", "dura"},
    "Het scherm is na een week al kapot": {"scherm", "week", "kapot"},
    "أنا أنتظر الطرد منذ أسبوع": {"أنتظر", "الطرد", "أسبوع"},
    "Я жду посылку уже неделю, и её всё ещё нет": {"жду", "посылку", "неделю"},
    "I can’t log in, and it doesn't help": {"log", "help"},
}


@pytest.mark.parametrize("text", FUNCTION_WORDS_LEFT_OUT)
def test_only_words_with_a_meaning_of_their_own_are_left(text: str) -> None:
    assert content_words(text) == FUNCTION_WORDS_LEFT_OUT[text]


def test_a_word_is_a_function_word_only_in_its_own_language() -> None:
    assert "die" in content_words("the phones die after a week")
    assert "die" not in content_words("die Handys sind nach einer Woche leer")
    assert content_words("refund") == {"refund"}


def test_texts_without_spaces_are_not_one_word() -> None:
    assert content_words("バッテリーがすぐに切れます。返金してください") == {"バッテリー", "返金"}
    assert content_words("电池很快就没电了") >= {"电池", "没电"}
    assert content_words("!!! …") == set()
