"""What a source of data says of itself: where it comes from, and on which terms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """Terms of use.

    Attributes:
        name: as people call it.
        address: of its text.
        hub: its identifier in the front matter of a card on the Hugging Face hub; "other" where the
            hub has none.
    """

    name: str
    address: str
    hub: str


CC0 = Licence("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0")
CC_BY = Licence("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "cc-by-4.0")
LGPL = Licence("LGPL 2.1", "https://www.gnu.org/licenses/old-licenses/lgpl-2.1.html", "lgpl-2.1")
MIT = Licence("MIT", "https://opensource.org/license/mit", "mit")
UNICODE = Licence("Unicode-3.0", "https://www.unicode.org/license.txt", "other")


@dataclass(frozen=True)
class Source:
    """A publisher's data.

    Attributes:
        name: of the data.
        address: of its publisher's page.
        gives: what is taken from it.
        licence: of the data, whatever that of the package is.
        package: the Python package that it comes with, if any; its version then decides.
        attribution: what whoever passes it on must say, beside licence and address.
    """

    name: str
    address: str
    gives: str
    licence: Licence
    package: str = ""
    attribution: str = ""
