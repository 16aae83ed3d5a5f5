"""A part of a record: a dataclass that pydantic checks and makes from JSON, and that knows which keys it was given."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from pydantic import Field, GetCoreSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

#: No byte, second or loss is larger; squares and sums of such numbers stay within every float.
LARGEST = 1e100

_BOUNDS = {"minimum": -LARGEST, "maximum": LARGEST}
Count = Annotated[
    int, Field(strict=True, ge=-int(LARGEST), le=int(LARGEST)), WithJsonSchema({"type": "integer", **_BOUNDS})
]
# An integer stays one: bytes are written back as they were read.
Number = Annotated[
    Count | Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)],
    Field(union_mode="left_to_right"),
    WithJsonSchema({"type": "number", **_BOUNDS}),
]
Text = Annotated[str, Field(strict=True)]
Truth = Annotated[bool, Field(strict=True)]


class Nothing(dict):
    """The mapping of a field that was not recorded; one for all, so it must not be changed."""

    def __hash__(self) -> int:  # type: ignore[override]  # lets a dataclass take it as a default
        return 0


NOTHING: Any = Nothing()
_new, _set = object.__new__, object.__setattr__


class Part:
    """Base of the dataclasses of a record, which are frozen and have defaults for all that may be missing.

    Read from JSON, a part has in its `__dict__` the keys that stood there, unknown ones too; the others fall back to
    the defaults of its class. A null where a part or mapping is expected reads as an empty one.
    """

    #: Whether whoever writes a record may add keys of its own.
    open: ClassVar[bool] = False
    #: The type of the values under keys that the class does not name.
    others: ClassVar[Any] = None

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Self:
        part = _new(cls)
        for name in cls._empty.keys() & values.keys() if cls._empty else ():
            if values[name] is None:
                values[name] = cls._empty[name]
        _set(part, "__dict__", values)
        return part

    # What a null is read as, by field.
    _empty: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Part | Nothing)}
        cls._empty = {**cls._empty, **own}

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Return a part of these values alone, so that the others are not written at all."""
        return cls._of({}).changed(**fields)

    def changed(self, **fields: Any) -> Self:
        """Return the part with other values in `fields`, the keys of a newer version among the rest.

        dataclasses.replace would lose those. Raises TypeError for a name that the class does not have.
        """
        unknown = fields.keys() - {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]  # is one
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        return self._of({**vars(self), **fields})

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        hints = get_type_hints(cls, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # all are dataclasses
        schemas = {name: handler.generate_schema(hints[name]) for name in fields}
        mapping = core_schema.typed_dict_schema(
            {
                name: core_schema.typed_dict_field(
                    core_schema.nullable_schema(schema) if name in cls._empty else schema,
                    required=fields[name].default is dataclasses.MISSING,
                )
                for name, schema in schemas.items()
            },
            cls=cls,
            strict=True,
            extra_behavior="allow",
            extras_schema=None if cls.others is None else handler.generate_schema(cls.others),
        )
        return core_schema.no_info_after_validator_function(cls._of, mapping)


def plain(value: Any) -> Any:
    """Return a part, or a mapping or list of parts, as JSON; a part of which nothing is known is null."""
    if isinstance(value, Part):
        fields = {name: plain(inner) for name, inner in vars(value).items()}
        return fields if any(inner is not None for inner in fields.values()) else None
    if isinstance(value, dict):
        return None if value is NOTHING else {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def unknown_keys(value: Any, place: str = "") -> Iterator[str]:
    """Yield the path of every key that stands in a part, or in one inside it, and that its class does not name."""
    if isinstance(value, Part):
        names = {field.name for field in dataclasses.fields(value)}  # type: ignore[arg-type]  # all are dataclasses
        for name, inner in vars(value).items():
            if name in names:
                yield from unknown_keys(inner, f"{place}{name}.")
            elif not value.open:
                yield place + name
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unknown_keys(inner, f"{place}{key}.")
