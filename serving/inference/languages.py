"""The language of a text, as a version's answer names it.

By py3langid: naive Bayes over byte n-grams (Lui & Baldwin, "langid.py", ACL 2012).
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

UNDETERMINED: Final = "und"
# The beginning of a text tells its language as well as the whole, and costs less.
_CHARACTERS: Final = 300
# The probability of a language that is named.
_SURE: Final = 0.5
# A text is foreign if a language that isn't known has this probability, and so many times that of each known one.
_LIKELY: Final = 0.2
_DECISIVE: Final = 30
# The classifier's name for texts without words.
_NO_WORDS: Final = "zxx"


class LanguageClassifier(Protocol):
    """The part of py3langid that is used."""

    def classify(self, text: str) -> tuple[str, float]:
        """Return the likeliest language and its probability."""

    def rank(self, text: str) -> list[tuple[str, float]]:
        """Return every language and its probability, the likeliest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLanguage:
    """A text's language: a BCP 47 tag, `und` if that is unsure; `foreign`: surely none that a version knows."""

    language: str = UNDETERMINED
    foreign: bool = False


def identify_language(text: str, known: Collection[str]) -> TextLanguage:
    """Return the language of a text for a version that knows these languages.

    Nothing is foreign to a version of which no language is said.
    """
    classifier, beginning = load_classifier(), text[:_CHARACTERS]
    if not any(map(str.isalpha, beginning)):
        return TextLanguage()
    language, probability = classifier.classify(beginning)
    if language == _NO_WORDS or probability < _LIKELY:
        return TextLanguage()
    tags = {tag.partition("-")[0].lower() for tag in known}
    probabilities = dict(classifier.rank(beginning)) if tags and language not in tags else {}
    # Of a language that the classifier doesn't know nobody can say that the text isn't in it.
    if not tags <= probabilities.keys() or not tags:
        return TextLanguage(language=language if probability >= _SURE else UNDETERMINED)
    if probability > _DECISIVE * max(probabilities[tag] for tag in tags):
        return TextLanguage(language=language, foreign=True)
    return TextLanguage()


@cache
def load_classifier() -> LanguageClassifier:
    """Return the classifier; the first call takes 0.6 s and 80 MB."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classifier: LanguageClassifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return classifier
