"""``python -m benchmark.cli``: the program where it is installed, whatever the folder of its script."""

from benchmark.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
