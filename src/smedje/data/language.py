"""Which language a text seems to be in: by script, then by the commonest small words. A guess, and called one."""

import re
from collections import Counter

_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
)
_SMALL_WORDS = {
    "en": "the and is are you of to in that it for with this have not your can what how be on my i do if will was",
    "da": "og det er jeg ikke på til en et at du kan hvad hvordan med for af der har vi den som fra min din skal",
    "no": "og det er jeg ikke på til en et å du kan hva hvordan med for av der har vi den som fra min din skal",
    "sv": "och det är jag inte på till en ett att du kan vad hur med för av där har vi den som från min din ska",
    "de": "der die das und ist nicht ich sie es ein eine zu mit für auf wie was kann haben ihr von den dem im",
    "nl": "de het een en is niet ik je van te dat op voor met zijn hoe wat kan er aan mijn uw deze ook maar",
    "fr": "le la les et est pas je vous un une de des que pour dans avec ce comment votre sur il nous mon au du",
    "es": "el la los las y es no yo un una de que para en con por cómo su se mi qué puede lo al del como",
    "it": "il la gli e è non io un una di che per in con come si mi del sono può questo della anche alla i",
    "pt": "o os as e é não eu um uma de que para em com por como se meu seu você do da no na mas isso",
}
_SETS = {name: frozenset(words.split()) for name, words in _SMALL_WORDS.items()}
LONGEST_LOOK = 2000


def guess_language(text: str) -> str | None:
    """ISO 639-1 code, or None when the text is too short or says too little.

    Scripts with one main language are told by their letters (Cyrillic counts as `ru`, Arabic letters as `ar`).
    """
    text = text[:LONGEST_LOOK].lower()
    letters = sum(len(word) for word in _WORD.findall(text))
    if letters == 0:
        return None
    for name, script in _SCRIPTS:
        if len(script.findall(text)) * 3 > letters:
            return name
    words = Counter(_WORD.findall(text))
    scores = {name: sum(number for word, number in words.items() if word in small) for name, small in _SETS.items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= 2 and scores[best] * 20 >= sum(words.values()) else None
