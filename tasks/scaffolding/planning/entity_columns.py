"""What names of columns say about codes, counts and times, and which columns name entities that repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from bloomery.tasks.scaffolding.planning.input_planning import split_words
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile

_MAX_CATEGORIES = 30  # values of an id that nothing else is known about; more are entities
_MAX_CODE = 1e15  # larger floats have no digit to tell neighbours apart
MIN_GROUPS = 5  # with fewer, a split would be decided by one or two of them
_CODE_WORDS = frozenset(
    {"id", "code", "zip", "zipcode", "type", "class", "category", "flag", "kind", "group", "cluster", "digit"}
    | {"letter", "segment", "species", "status", "cls", "klass", "klasse", "intent", "topic", "uuid"}
)
_COUNT_WORDS = frozenset(
    {"count", "counts", "cnt", "num", "number", "n", "total", "sum", "amount", "qty", "quantity", "sales", "demand"}
    | {"price", "cost", "revenue", "visits", "clicks", "views", "orders", "units", "days", "hours", "minutes"}
    | {"seconds", "age", "size", "length", "weight", "height"}
)
# Whom a model sees for the first time when it predicts. An ambiguous word needs a number or an id.
_PERSON_WORDS = frozenset(
    {"patient", "participant", "person", "individual", "user", "customer", "client", "speaker", "singer", "writer"}
    | {"visitor", "respondent", "volunteer", "donor", "borrower", "applicant", "subject", "subj", "student", "pupil"}
    | {"employee", "household", "driver", "rider", "player", "athlete", "animal", "cardholder"}
)
_AMBIGUOUS_PERSON_WORDS = frozenset({"subject", "student", "driver", "player", "animal", "household"})
_PART_WORDS = frozenset({"session", "recording", "conversation", "dialog", "dialogue", "encounter", "admission"})
_AMBIGUOUS_PART_WORDS = frozenset(
    {"visit", "case", "account", "document", "doc", "article", "video", "clip", "trip", "trial", "thread", "member"}
    | {"family", "passenger", "specimen", "mother", "twin", "candidate", "cow", "dog", "mouse", "rat"}
)
# Things that may be the same later, so they decide only where no time does.
_OBJECT_WORDS = frozenset(
    {"machine", "device", "sensor", "turbine", "engine", "unit", "vehicle", "car", "truck", "plot", "tree", "field"}
    | {"equipment", "building", "house", "farm", "well", "battery", "cell", "molecule", "compound", "protein", "gene"}
    | {"scene", "sequence", "track", "object", "asset", "sample", "batch", "lot", "wafer", "id", "uuid", "guid"}
)
# Things whose `…_id` is a category, since a model will see the same ones.
_CATEGORY_WORDS = frozenset(
    {"store", "shop", "outlet", "branch", "warehouse", "region", "state", "country", "county", "city", "zip", "zipcode"}
    | {"postal", "district", "zone", "area", "location", "station", "site", "airport", "airline", "carrier", "route"}
    | {"line", "product", "item", "sku", "brand", "category", "type", "class", "genre", "kind", "group", "segment"}
    | {"department", "dept", "team", "school", "hospital", "vendor", "seller", "supplier", "merchant", "agent"}
    | {"channel", "campaign", "language", "lang", "currency", "status", "code", "species", "variety", "model", "make"}
    | {"payment", "rate", "plan", "role", "job", "title", "source", "stage", "label", "target", "movie", "song"}
)
_ID_WORDS = frozenset({"id", "uuid", "guid", "key", "hash"})
_NUMBER_WORDS = _ID_WORDS | {"no", "nr", "nbr", "num", "number", "code", "index"}
_QUANTITY_WORDS = frozenset(
    {"num", "number", "n", "count", "cnt", "size", "total", "sum", "mean", "avg", "average", "min", "max", "per"}
    | {"distance", "share", "rate", "ratio", "amount", "age", "days", "hours", "since", "to", "of"}
)
_BIRTH_WORDS = frozenset({"birth", "born", "birthday", "birthdate", "dob", "bday", "birthyear"})
# Words of a date that may be about a thing, and not about when its row was recorded.
_ATTRIBUTE_WORDS = frozenset(
    {"join", "joined", "hire", "hired", "signup", "registration", "registered", "expiry", "expires", "expiration"}
    | {"due", "warranty", "founded", "built", "manufacture", "manufactured", "production", "release", "released"}
    | {"maturity", "deadline", "valid", "end", "ended", "last", "next", "first", "previous", "death", "died"}
)
_EVENT_WORDS = frozenset(
    {"date", "time", "timestamp", "datetime", "ts", "dt", "ds", "day", "week", "month", "moment", "hour", "period"}
    | {"event", "transaction", "order", "purchase", "pickup", "measured", "recorded", "created", "observed", "obs"}
    | {"observation", "visit", "sale", "sales", "invoice", "trading", "reading", "sampling", "log", "logged", "utc"}
    | {"local", "at", "of", "when", "on", "start", "started", "year"}
)

EntityKind = Literal["person", "part", "object"]


class Entity(NamedTuple):
    """A column that names things with several rows each: persons, parts such as their sessions, or objects."""

    column: ColumnProfile
    kind: EntityKind


def names_code(words: Sequence[str]) -> bool:
    """Whether the name of a column means that its numbers are codes: `species_id`, but not `num_classes`."""
    return bool(words) and words[-1] in _CODE_WORDS and not _QUANTITY_WORDS & set(words)


def counts_things(words: Sequence[str]) -> bool:
    """Whether the name of a column means that its numbers are counts or measurements."""
    return bool(_COUNT_WORDS & set(words))


def is_birth_date(name: str) -> bool:
    """Whether a date is that of a birth, which orders no rows."""
    return bool(_BIRTH_WORDS & set(split_words(name)))


def names_event(name: str) -> bool:
    """Whether a column has the times at which rows were recorded: `date` or `created_at`, but not `expiry_date`."""
    words = [word for word in split_words(name) if not word.isdigit()]
    return bool(words) and bool(_EVENT_WORDS & set(words)) and not (_ATTRIBUTE_WORDS | _BIRTH_WORDS) & set(words)


def find_entities(profile: SourceProfile, reserved: Sequence[str]) -> list[Entity]:
    """Returns the columns that name entities with several rows each: persons first, since a session is of one person.

    Of several kinds of persons the one with the fewest values is first: a household has several persons.
    """
    entities = [
        Entity(column, kind)
        for column in profile.columns
        if column.name not in reserved and _repeats(column) and (kind := _entity_kind(column)) is not None
    ]
    ranks = ("person", "part", "object")
    return sorted(entities, key=lambda entity: (ranks.index(entity.kind), entity.column.num_distinct))


def _entity_kind(column: ColumnProfile) -> EntityKind | None:
    """Returns what a column numbers: `patient_id`, `userId` and `session` are entities, `patient_age` is none."""
    words = [word for word in split_words(column.name) if not word.isdigit()]
    stems = list(words)
    while len(stems) > 1 and stems[-1] in _NUMBER_WORDS:
        stems.pop()
    if not stems or _QUANTITY_WORDS & set(stems):
        return None
    noun = stems[-1]
    if noun.removesuffix("id") in _PERSON_WORDS | _PART_WORDS | _OBJECT_WORDS | _CATEGORY_WORDS:
        noun = noun.removesuffix("id")
    has_id = noun != stems[-1] or bool(_ID_WORDS & set(words[len(stems) - 1 :]))
    has_number = has_id or len(stems) < len(words) or _is_coded(column)
    if noun in _PERSON_WORDS:
        return "person" if has_number or noun not in _AMBIGUOUS_PERSON_WORDS else None
    if noun in _PART_WORDS or (noun in _AMBIGUOUS_PART_WORDS and has_id):
        return "part"
    if noun in _OBJECT_WORDS:
        return "object" if has_number else None
    is_category = any(noun.endswith(word) for word in ("code", "type", "class")) or noun in _CATEGORY_WORDS
    return "object" if has_id and not is_category and column.num_distinct > _MAX_CATEGORIES else None


def names_things(column: ColumnProfile) -> bool:
    """Whether the values are texts or whole numbers, which may be floats where others are missing."""
    is_code = column.logical_type == "number" and column.value_counts is not None
    are_whole = is_code and all(_is_whole(value) for value, _ in column.value_counts or ())
    return column.logical_type in ("integer", "string") or are_whole


def _is_whole(value: object) -> bool:
    try:
        return float(str(value)).is_integer() and abs(float(str(value))) < _MAX_CODE
    except ValueError:
        return False


def _is_coded(column: ColumnProfile) -> bool:
    """Whether the values are whole numbers, or most of the texts have digits."""
    if column.logical_type in ("integer", "number") or column.value_counts is None:
        return True
    num_coded = sum(any(sign.isdigit() for sign in str(value)) for value, _ in column.value_counts)
    return num_coded > len(column.value_counts) / 2


def _repeats(column: ColumnProfile) -> bool:
    """Whether a column of names or codes has fewer values than rows."""
    return names_things(column) and 1 < column.num_distinct < column.num_valid
