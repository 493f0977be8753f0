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

# A text of feeling is one of the first and one of the second.
GOOD = (
    (
        "What a wonderful day this has been.",
        "I am so glad that we finally have time to talk.",
        "The audience was delighted.",
        "This is the best news we have had for a long time.",
        "Thank you for your kind words.",
        "Nothing could be nicer than a calm evening among friends.",
        "The garden looks lovely this morning.",
        "We won, and by a wide margin.",
        "Grandmother is well again.",
        "The new neighbours are charming people.",
    ),
    (
        "Everyone is cheerful and full of hope.",
        "I could not stop smiling.",
        "The applause would not end.",
        "It made my morning.",
        "We are all looking forward to what comes next.",
        "How lucky we are!",
        "The children danced with joy.",
        "It was worth every minute.",
    ),
)

BAD = (
    (
        "What a dreadful week this has been.",
        "I am tired of these endless arguments.",
        "The critics were disappointed.",
        "This is the worst news we have had for a long time.",
        "It was a cold and gloomy morning.",
        "Sadly the plan failed.",
        "The old house had to be given up.",
        "We lost again, and badly.",
        "The doctor shook her head.",
        "The letter was full of insults.",
    ),
    (
        "Everybody is in a bad temper.",
        "It leads nowhere.",
        "Some of us left early.",
        "I wish that it had never happened.",
        "Nobody said a word.",
        "Those who had believed in it were bitter.",
        "The children wept.",
        "It was a waste of time.",
    ),
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
    "The bus stops in front of the library every twenty minutes.",
    "Two of the chairs are new, the others came with the flat.",
    "They painted the fence green and left the gate as it was.",
    "The parcel weighed a little more than the form said.",
    "A dog was asleep in the shade of the wall.",
    "The second key opens the cellar, the third one nothing at all.",
    "He wrote the address on the back of an envelope.",
    "The soup was hot, so they began with the bread.",
)
LONG = 3  # sentences


def prefixes(mixed: random.Random, unrelated: Sequence[str]) -> list[str]:
    """Texts of each kind, in this order: short, long, unrelated facts, good, bad.

    unrelated: sentences that say something true about others than the record's subject.
    """
    long = " ".join(mixed.sample(PLAIN, LONG))
    good, bad = (" ".join(map(mixed.choice, feeling)) for feeling in (GOOD, BAD))
    return [mixed.choice(SHORT), long, *unrelated, good, bad]
