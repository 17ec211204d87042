# docker build -t loraprune .
# docker run --rm --gpus all -v "$PWD":/work -v "$HOME/.cache/huggingface":/cache loraprune prune --model org/name --data train.jsonl --output small
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY src /src/src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[report,metrics,export,quant]" && rm -rf /src

# Files in /work belong to whoever runs the container: docker run --user "$(id -u):$(id -g)" ...
ENV HF_HOME=/cache HOME=/tmp PYTHONUNBUFFERED=1
RUN mkdir -m 777 /work /cache
WORKDIR /work
ENTRYPOINT ["loraprune"]
CMD ["--help"]
