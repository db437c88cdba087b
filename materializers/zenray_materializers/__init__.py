"""The materializers that come with ZenRay: a table of type names, so that nothing is imported before it is used.

Runs in: anywhere.
"""

_PLAIN = "zenray_materializers.plain:PlainMaterializer"
_PATH = "zenray_materializers.files:PathMaterializer"

# type name, "module:Class", whether subclasses are not served, whether it pickles
TABLE: tuple[tuple[str, str, bool, bool], ...] = (
    ("@dataclass", _PLAIN, False, False),
    ("builtins.NoneType", _PLAIN, False, False),
    ("builtins.bool", _PLAIN, False, False),
    ("builtins.bytearray", _PLAIN, False, False),
    ("builtins.bytes", _PLAIN, False, False),
    ("builtins.complex", _PLAIN, False, False),
    ("builtins.dict", _PLAIN, False, False),
    ("builtins.ellipsis", _PLAIN, False, False),
    ("builtins.float", _PLAIN, False, False),
    ("builtins.frozenset", _PLAIN, False, False),
    ("builtins.int", _PLAIN, False, False),
    ("builtins.list", _PLAIN, False, False),
    ("builtins.range", _PLAIN, False, False),
    ("builtins.set", _PLAIN, False, False),
    ("builtins.str", _PLAIN, False, False),
    ("builtins.tuple", _PLAIN, False, False),
    ("collections.Counter", _PLAIN, False, False),
    ("collections.OrderedDict", _PLAIN, False, False),
    ("collections.defaultdict", _PLAIN, False, False),
    ("collections.deque", _PLAIN, False, False),
    ("datetime.date", _PLAIN, False, False),
    ("datetime.datetime", _PLAIN, False, False),
    ("datetime.time", _PLAIN, False, False),
    ("datetime.timedelta", _PLAIN, False, False),
    ("datetime.timezone", _PLAIN, False, False),
    ("decimal.Decimal", _PLAIN, False, False),
    ("enum.Enum", _PLAIN, False, False),
    ("fractions.Fraction", _PLAIN, False, False),
    ("pathlib.Path", _PATH, False, False),
    ("pathlib.PurePath", _PLAIN, False, False),
    ("pydantic.main.BaseModel", _PLAIN, False, False),
    ("uuid.UUID", _PLAIN, False, False),
    ("zoneinfo.ZoneInfo", _PLAIN, False, False),
)
