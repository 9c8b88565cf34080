find /app/.venv -type d \( -name tests -o -name test \) -prune -exec rm -rf {} + \
 && uv pip sync $checked ./src/requirements.lock

# `bentoml containerize` puts all of this into its own Dockerfile, after it has installed the packages: the two lines above run
# where the tools are; those below begin the image that is kept, which holds none of them. `prodml build` writes this file again.
FROM $base
# Bytecode of the standard library, which slim images come without, makes each start a second shorter.
RUN groupadd -o -g 1034 bentoml && useradd -o -u 1034 -g 1034 -M -d /nonexistent -s /usr/sbin/nologin bentoml \
 && install -d -o bentoml -g bentoml /data \
 && python3 -c "import compileall, py_compile, re, sysconfig; compileall.compile_dir(sysconfig.get_path('stdlib'), quiet=2, rx=re.compile('/(test|idlelib|tkinter|lib2to3|site-packages|dist-packages)/'), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
COPY --from=base-container /app/.venv /app/.venv
# Nothing is written but under /tmp, and under /data what the settings ask to keep: the root may be read-only.
ENV PATH=/app/.venv/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    BENTO_PATH=/home/bentoml/bento BENTOML_HOME=/tmp/bentoml BENTOML_CONTAINERIZED=true BENTOML_PORT=3000 \
    BENTOML_DO_NOT_TRACK=True ORT_DISABLE_TELEMETRY=1 PRODML_ROOT=/data
LABEL $labels
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + (os.environ.get('PORT') or os.environ['BENTOML_PORT']) + '/readyz', timeout=2)"]
WORKDIR /home/bentoml/bento
