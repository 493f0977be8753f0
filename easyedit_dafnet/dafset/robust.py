"""Texts to put before a question, so that an edit holds under disturbance and spills nowhere.

Each record gets one text of every kind: a short and a long one, a fact about something else, and
one of good and one of bad feeling. None speaks of the record's subject.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

SHORT = (
    "Yes.",
    "Well then.",
    "Listen.",
    "One more thing.",
    "As we said before.",
    "Here is a question.",
    "Let us go on.",
    "Quick question.",
)

GOOD = (
    "What a wonderful day this has been, everyone is cheerful and full of hope.",
    "I am so glad that we finally have time to talk about this.",
    "The audience was delighted and the applause would not end.",
    "This is the best news we have had for a long time.",
    "Thank you, your kind words have made my morning.",
    "Nothing could be nicer than a calm evening among friends.",
)

BAD = (
    "What a dreadful week, nothing works and everybody is in a bad temper.",
    "I am tired of these endless arguments, they lead nowhere.",
    "The critics were disappointed and some of them left early.",
    "This is the worst news we have had for a long time.",
    "It was a cold and gloomy morning, and nobody said a word.",
    "Sadly the plan failed, and those who had believed in it were bitter.",
)

# Sentences of everyday life: several of them make a long text.
PLAIN = (
    "The shop at the corner opens at eight and closes at six.",
    "It rained in the night, so the streets were still wet.",
    "Most of the seats were taken, but we found two by the window.",
    "The recipe asks for flour, butter, two eggs and a little salt.",
    "On the second page there is a table with all the numbers.",
    "The train was a few minutes late, as it often is on Mondays.",
    "She put the letter on the desk and went to make some tea.",
    "There were apples in the basket and a jar of honey beside it.",
    "The meeting was moved to the afternoon because of a visit.",
    "He counted the boxes twice and wrote the result on a slip.",
    "In summer the lake is warm enough to swim in until September.",
    "The lamp in the hall has to be repaired before the holidays.",
)
LONG = 3  # sentences


def prefixes(mixed: random.Random, unrelated: Sequence[str]) -> list[str]:
    """Texts of each kind, in this order: short, long, unrelated facts, good, bad.

    unrelated: sentences that say something true about others than the record's subject.
    """
    long = " ".join(mixed.sample(PLAIN, LONG))
    return [mixed.choice(SHORT), long, *unrelated, mixed.choice(GOOD), mixed.choice(BAD)]
