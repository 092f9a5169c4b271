"""How long the texts are that a partition makes for a query: not much longer than those that are there.

What DuckDB allocates for the values of one vector is outside of its limit of memory, and it cannot be interrupted meanwhile: two thousand
texts of a megabyte are two gigabytes. A partition computes beside its state. So of the functions whose values have no fixed length it takes
an allow-list of those that give no more bytes than they get: not those that make much of little, nor those that do when they are nested
(``hex`` doubles, so ten of them are a thousandfold). Of what joins texts, or is nested, there may be a little; casts may quote every
character.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: Bytes of a partial query, and of the values of its parameters as they travel.
LONGEST_PARTIAL, LONGEST_VALUES = 8 << 10, 2 << 10
#: Functions and casts that give texts or the like, one in the other; and arguments of all that joins texts.
DEEPEST_TEXT, DEEPEST_CAST, MOST_JOINED = 6, 4, 16

#: Types whose values have one length, as DuckDB names the results of functions.
_FIXED = {
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
    "FLOAT", "DOUBLE", "DECIMAL", "UUID", "INTERVAL", "DATE", "TIME", "TIME_NS", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS",
    "TIMESTAMP_NS", "TIME WITH TIME ZONE", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS",
}  # fmt: skip
_JOINING = {"concat", "||"}
_NUMBERS = {"&", "|", "~", "xor", "<<", ">>", "+", "-", "add", "subtract", "date_part", "datepart"}
_TEXTS = {
    "upper", "lower", "ucase", "lcase", "trim", "ltrim", "rtrim", "left", "right", "left_grapheme", "right_grapheme", "substring",
    "substr", "substring_grapheme", "reverse", "strip_accents", "nfc_normalize", "translate", "regexp_extract", "split_part", "chr",
    "dayname", "monthname", "md5", "sha1", "sha256", "typeof", "greatest", "least", "parse_dirname", "parse_dirpath", "parse_filename",
    "encode", "decode", "unhex", "from_hex", "unbin", "from_binary", "from_base64", "url_decode", "struct_extract", "array_extract",
    "list_extract", "list_element", "element_at", "map_extract_value", "json_extract_string", "json_type", "json_value", "->>",
}  # fmt: skip
#: Functions without a type of one length that give no more than they take.
_SHORT = _JOINING | _NUMBERS | _TEXTS
#: What needs memory for every pair of characters.
_SQUARE = {"levenshtein", "editdist3", "damerau_levenshtein"}


def short(listed: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Of functions (name, type of the result), each as often as it has forms, those that make no long value of short ones."""
    long, names = set(), set()
    for name, result in listed:
        names.add(name)
        if str(result) not in _FIXED:
            long.add(name)
    return frozenset((names - long - _SQUARE) | names & _SHORT)


def too_long(tree: Any) -> bool:
    """Whether a query, by its tree, may make long texts of short ones, although it has no function that does."""
    texts, casts, joined = _measured(tree)
    return texts > DEEPEST_TEXT or casts > DEEPEST_CAST or joined > MOST_JOINED


def _measured(tree: Any) -> tuple[int, int, int]:
    if not isinstance(tree, dict | list):
        return 0, 0, 0
    below = [_measured(each) for each in (tree.values() if isinstance(tree, dict) else tree)]
    texts, casts = max((each[0] for each in below), default=0), max((each[1] for each in below), default=0)
    joined = sum(each[2] for each in below)
    if isinstance(tree, dict):
        name = tree.get("function_name")
        texts += name in _TEXTS or name in _JOINING
        casts += tree.get("class") == "CAST"
        joined += len(tree["arguments"]) if name in _JOINING else 0
    return texts, casts, joined
