"""Win rates, ratings, rankings and their intervals."""
