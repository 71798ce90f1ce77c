"""The tests of the maths notice every known way to get it wrong."""

import pytest

from tests.mutants import MUTANTS, Mutant, survives


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    assert not survives(mutant)
