"""Run the benchmark from a checkout: ``python run_benchmark.py --methods all --tasks zeroshot``."""

from benchmark.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
