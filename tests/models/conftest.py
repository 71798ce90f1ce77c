"""Fixtures for the model tests."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CASES, VOCAB


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    """(3, 24) token ids without the pad token."""
    return torch.randint(3, VOCAB, (3, 24), generator=torch.Generator().manual_seed(5))
