# Sets PYTHON, unless it is set, to the first Python that has the package installed; for scripts that define `die`.
if [[ -z ${PYTHON:-} ]]; then
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" .venv/bin/python python python3; do
        # -I excludes the current folder, which may contain a copy that is not installed.
        if [[ -n $candidate ]] && command -v "$candidate" >/dev/null &&
            "$candidate" -I -c 'import resshift_fast' 2>/dev/null; then
            PYTHON=$candidate
            break
        fi
    done
    [[ -n ${PYTHON:-} ]] || die "no Python here has resshift_fast installed; name one that has with PYTHON=..."
fi
