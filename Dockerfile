# docker build -t classifier .
# docker run --rm --shm-size=1g classifier
# The loader processes hand pictures over in shared memory, of which Docker gives 64 MB.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home user
USER user
WORKDIR /home/user

# The packages are a layer of their own: after a change of the code, they are not installed again.
COPY --chown=user Makefile pyproject.toml requirements.lock ./
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 make .venv/.installed

COPY --chown=user . .
CMD ["make", "demo"]
