"""Number types for options, which also accept fractions such as `8/255`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _fraction(value: Any) -> Any:
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value  # pydantic then reports that it is not a number
    return value


Real = Annotated[float, BeforeValidator(_fraction), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
