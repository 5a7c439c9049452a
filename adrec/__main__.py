"""`python -m adrec` is the `adrec` command."""

from adrec.cli.app import main

if __name__ == "__main__":
    main()
