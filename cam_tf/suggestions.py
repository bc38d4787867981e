"""The names that are nearest to one that is unknown, for error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], n: int = 3) -> str:
    """Returns ``" Did you mean 'a' or 'b'?"``, or ``""`` when nothing is near.

    Names are compared without regard to case, as a whole and by what they contain.
    """
    wanted = name.lower().strip()
    by_lower: dict[str, str] = {}
    for candidate in known:
        by_lower.setdefault(candidate.lower(), candidate)
    near = difflib.get_close_matches(wanted, by_lower, n=n, cutoff=0.6)
    if len(wanted) >= 3:
        containing = sorted((key for key in by_lower if wanted in key), key=len)
        near += [key for key in containing if key not in near]
    if not near:
        return ""
    quoted = [repr(by_lower[key]) for key in near[:n]]
    return f" Did you mean {' or '.join(quoted)}?"
