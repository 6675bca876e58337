# The one image: the trainer, and by another command (`grid serve`) the controller.
#
#   docker build --build-arg COMMIT=$(git rev-parse HEAD) --build-arg VERSION=0.1.0 --tag experiment-grid .
#
# BuildKit is needed (Docker 20.10 or newer). Behind a company's proxy with a CA of its own, hand the CA to the build,
# where no layer keeps it: --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
#
# COMPILE=no leaves out what only `compile: true` in a spec needs (Triton and a C compiler, 1.3 GB).

# any Debian or Ubuntu whose python3 is 3.11, 3.12 or 3.13
ARG BASE=debian:trixie-slim


FROM ${BASE} AS system
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache \
 && python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
 && groupadd --gid 65532 nonroot \
 && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin nonroot


FROM system AS uv
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip
ARG UV_VERSION=0.13.9
# PyPI's own wheels for x86-64 and for ARM: the lines to change with the version
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && echo "uv==$UV_VERSION \
      --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 \
      --hash=sha256:ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375" > /tmp/uv.txt \
 && pip install --break-system-packages --no-cache-dir --quiet --require-hashes --no-deps -r /tmp/uv.txt \
 && mkdir /uv && mv "$(command -v uv)" /uv/


# The locked packages with their hashes, as lists, one a layer: CUDA and torch change seldom, and are nine tenths of it.
FROM uv AS lists
WORKDIR /lists
COPY pyproject.toml uv.lock ./
RUN /uv/uv export --quiet --frozen --no-dev --no-emit-project --no-header --no-annotate \
  | awk '/^[a-z]/ { list = /^triton==/ ? "triton.txt" : \
                           /^(nvidia|cuda)-[a-z0-9-]+==/ ? "cuda.txt" : \
                           /^torch(vision)?==/ ? "torch.txt" : "others.txt" } \
         { print > list }' \
 && for list in cuda torch others triton; do test -s $list.txt; done


FROM system AS packages
# build arguments, not ENV: uv's settings are no part of the image
ARG UV_NO_CACHE=1
ARG UV_LINK_MODE=copy
ARG UV_COMPILE_BYTECODE=1
ARG UV_PYTHON_DOWNLOADS=never
ARG VIRTUAL_ENV=/opt/venv
RUN --mount=type=bind,from=uv,source=/uv,target=/run/uv \
    --mount=type=bind,from=lists,source=/lists/cuda.txt,target=/run/cuda.txt \
    --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
 && /run/uv/uv venv --quiet --python /usr/bin/python3 "$VIRTUAL_ENV" \
 && /run/uv/uv pip install --quiet --require-hashes --no-deps -r /run/cuda.txt
RUN --mount=type=bind,from=uv,source=/uv,target=/run/uv \
    --mount=type=bind,from=lists,source=/lists/torch.txt,target=/run/torch.txt \
    --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
 && /run/uv/uv pip install --quiet --require-hashes --no-deps -r /run/torch.txt
RUN --mount=type=bind,from=uv,source=/uv,target=/run/uv \
    --mount=type=bind,from=lists,source=/lists/others.txt,target=/run/others.txt \
    --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
 && /run/uv/uv pip install --quiet --require-hashes --no-deps -r /run/others.txt \
 && echo /app > "$(echo "$VIRTUAL_ENV"/lib/python3.*/site-packages)/app.pth"
ARG COMPILE=yes
RUN --mount=type=bind,from=uv,source=/uv,target=/run/uv \
    --mount=type=bind,from=lists,source=/lists/triton.txt,target=/run/triton.txt \
    --mount=type=secret,id=ca \
    if [ "$COMPILE" = no ]; then exit 0; fi; \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
 && /run/uv/uv pip install --quiet --require-hashes --no-deps -r /run/triton.txt \
 && apt-get update \
 && apt-get install --yes --no-install-recommends g++ libpython3-dev \
 && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/ldconfig/aux-cache


FROM system AS code
COPY trainer /app/trainer
COPY controller /app/controller
COPY LICENSE /app/
ARG VERSION=0.0.0
# what `pip install` would leave: by it `grid --version` and the label of Jobs know their version
RUN mkdir "/app/experiment_grid-$VERSION.dist-info" \
 && printf 'Metadata-Version: 2.1\nName: experiment-grid\nVersion: %s\n' "$VERSION" \
      > "/app/experiment_grid-$VERSION.dist-info/METADATA"
RUN mkdir /app/bin \
 && printf '#!/opt/venv/bin/python\nimport sys\n\nfrom controller.cli import main\n\nsys.exit(main())\n' > /app/bin/grid \
 && chmod 755 /app/bin/grid \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /app


FROM packages AS image
ENV PATH=/app/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY --from=code /app /app
ARG VERSION=0.0.0
ARG COMMIT=unknown
ENV GRID_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="experiment-grid" \
      org.opencontainers.image.description="Trains one run of a grid of image classifiers; or, as grid serve, its controller." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
WORKDIR /tmp
USER 65532:65532
# The kernel drops a signal that the first process of a container does not handle yet. So SIGTERM is held back from the
# first instruction on, until the trainer listens (trainer/stop.py), and is delivered then.
ENTRYPOINT ["env", "--block-signal=TERM", "--block-signal=INT", "python", "-m", "trainer"]
