# SPDX-License-Identifier: Apache-2.0
# RedKnot on CPUs, with Mooncake's master: what compose.yaml runs. The pinned PyTorch is the ordinary one, so the image is large (about 10 GB).
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY redknot_sglang redknot_sglang
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
# Mooncake links to these. Nothing is compiled where there is no GPU, so there is no compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libibverbs1 libnuma1 libnl-3-200 libnl-route-3-200 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt requirements-dev.txt /tmp/
# The files name everything, so nothing is resolved. Of the second one only the store is needed.
RUN grep '^mooncake-transfer-engine-non-cuda==' /tmp/requirements-dev.txt > /tmp/requirements-store.txt \
    && pip install --no-cache-dir --no-deps -r /tmp/requirements.txt -r /tmp/requirements-store.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && useradd --create-home redknot
USER redknot
WORKDIR /home/redknot
