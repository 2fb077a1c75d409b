"""Fixtures that several test files use."""

import pytest
from cases import FAMILIES, Case


@pytest.fixture(params=FAMILIES)
def case(request) -> Case:
    """Every family once, float64."""
    return Case(request.param)
