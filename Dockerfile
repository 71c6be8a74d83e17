# CUDA image; runs the same make targets: docker build -t gch-bench . && docker run --gpus all gch-bench make demo
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends git make gcc g++ python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /gch-bench
COPY . .
RUN make install
CMD ["make", "demo"]
