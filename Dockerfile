# Vaults and front of one node, as two targets that differ in user, command and health check alone:
#   docker build --target vaults --tag jpki-vaults .
#   docker build --target front --tag jpki-front .
# CONTRIBUTING.md has the same for buildah, README.md how they run.

FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv python3-dev gcc libc6-dev libssl-dev pkg-config
RUN python3 -m venv /opt/jpki
WORKDIR /source
# Exactly these files, whatever the registry offers today.
COPY requirements.lock ./
RUN /opt/jpki/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements.lock
COPY pyproject.toml setup.py README.md ./
COPY appliance appliance
# Nothing that installs packages stays: neither program needs it.
RUN /opt/jpki/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation . \
    && /opt/jpki/bin/pip uninstall --yes setuptools pip

FROM debian:bookworm-slim AS runtime
LABEL org.opencontainers.image.title="JPKI SIM issuance appliance" \
    org.opencontainers.image.description="HSM-backed issuance of JPKI user authentication keys and certificates into SIMs"
# Numbers, because containers that share a volume share no list of users. The socket directory is as a volume begins.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 libssl3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin \
    && groupadd --gid 10001 jpki-vaults \
    && groupadd --gid 10002 jpki-front \
    && useradd --no-create-home --home-dir / --shell /usr/sbin/nologin --uid 10001 --gid 10001 jpki-vaults \
    && useradd --no-create-home --home-dir / --shell /usr/sbin/nologin --uid 10002 --gid 10002 jpki-front \
    && install -d /etc/jpki /run/jpki \
    && install -d --mode 2750 --owner jpki-vaults --group jpki-front /run/jpki/vaults \
    && install -d --mode 0700 --owner jpki-front --group jpki-front /run/jpki/front /var/lib/jpki
COPY --from=build /opt/jpki /opt/jpki
COPY hsm_config /usr/share/jpki/hsm_config
ENTRYPOINT ["/opt/jpki/bin/appliance"]

FROM runtime AS vaults
# The vendor's PKCS#11 module comes by an image of yours, FROM this one, or by a mount. Any value here adds SoftHSM, with
# which the demo and tests can run, and production cannot.
ARG WITH_SOFTHSM=
RUN if [ -n "$WITH_SOFTHSM" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends libsofthsm2 \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin; \
    fi
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["/opt/jpki/bin/appliance", "health", "vaults", "--config", "/etc/jpki/appliance.toml"]
CMD ["vaults", "--config", "/etc/jpki/appliance.toml"]

FROM runtime AS front
USER 10002:10002
EXPOSE 7443
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["/opt/jpki/bin/appliance", "health", "front", "--config", "/etc/jpki/appliance.toml"]
CMD ["serve", "--config", "/etc/jpki/appliance.toml"]
