"""`python -m rlhfkit`, which is also what torchrun starts."""

from rlhfkit.cli.main import main

if __name__ == "__main__":
    main()
