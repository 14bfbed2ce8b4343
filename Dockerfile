# medpeft-bench with the versions of the lock file. Build in the checkout:
#   docker build -t medpeft-bench .
#   docker run --rm -v "$PWD/results:/work/results" medpeft-bench --methods zero_shot,clip_lora --tasks zeroshot
FROM python:3.11-slim

WORKDIR /opt/medpeft-bench
COPY results/reference/requirements.lock results/reference/requirements.lock
RUN pip install --no-cache-dir --require-hashes --no-deps -r results/reference/requirements.lock

COPY pyproject.toml README.md LICENSE medpeft_bench.py run_benchmark.py ./
COPY benchmark benchmark
COPY methods methods
COPY tasks tasks
COPY configs configs
COPY results/paper results/paper
RUN pip install --no-cache-dir --no-deps -e .

RUN useradd --create-home bench && mkdir /work && chown bench /work
USER bench
WORKDIR /work
ENTRYPOINT ["medpeft-bench"]
