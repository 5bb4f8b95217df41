# Sourced by script/quickstart and script/test in the project's folder: makes .venv and installs packages into it, once.
# Runs in bash 3.2, which is what macOS has.

trap 'exit 130' INT
{ true 3<&0; } 2>/dev/null || exec </dev/null # if standard input is closed, the next file that is opened would become it

refuse() {
    echo "$*" >&2
    exit 2
}

# Prints the version of the Python $1, such as 3.12, and the module it lacks to make .venv, if any. Fails below 3.11.
examine() {
    "$1" -c '
import sys
if sys.version_info < (3, 11):
    sys.exit(1)
from importlib.util import find_spec
print("%d.%d" % sys.version_info[:2], *[name for name in ("venv", "ensurepip") if not find_spec(name)][:1])
' 2>/dev/null </dev/null
}

# Sets python to $PYTHON, or to the newest Python there is, and version to its version.
find_python() {
    local tried=(python3.14 python3.13 python3.12 python3.11 python3) candidate lacking="" unable
    [ -z "${PYTHON:-}" ] || tried=("$PYTHON")
    for candidate in "${tried[@]}"; do
        version="$(examine "$candidate")" || continue
        python="$candidate"
        case "$version" in *" "*) ;; *) return ;; esac
        [ -n "$lacking" ] || { lacking="$version" && unable="$candidate"; }
    done
    [ -z "$lacking" ] || refuse "$unable has no module ${lacking#* }, which is needed to make a virtual environment." \
        "Install it; on Debian and Ubuntu: apt-get install python${lacking% *}-venv"
    [ -z "${PYTHON:-}" ] || refuse "PYTHON=$PYTHON is not a working Python of version 3.11 or newer."
    refuse "Python 3.11 or newer was not found (tried: ${tried[*]}). Install it, for example from" \
        "https://www.python.org/downloads, or say where it is: PYTHON=/path/to/python bash $0"
}

# Prints the version of .venv's Python and a hash of the requirement files. Fails if .venv is not complete.
examine_venv() {
    .venv/bin/python -c '
import hashlib, sys
from importlib.util import find_spec
if sys.version_info < (3, 11) or sys.prefix == sys.base_prefix or not find_spec("pip"):
    sys.exit(1)
files = [open(name, "rb").read() for name in ("requirements.txt", "requirements-dev.txt", "requirements.lock")]
print("%d.%d" % sys.version_info[:2], hashlib.sha256(b"\0".join(files)).hexdigest())
' 2>/dev/null </dev/null
}

# Makes .venv if there is none that works, or if $PYTHON has another version; sets state to what examine_venv prints.
make_venv() {
    if state="$(examine_venv)"; then
        [ -n "${PYTHON:-}" ] || return 0
        find_python
        [ "$version" != "${state% *}" ] || return 0
        echo "Replacing .venv, which was made by Python ${state% *}, because PYTHON names Python $version." >&2
    else
        find_python
        [ ! -e .venv ] && [ ! -L .venv ] || echo "Replacing .venv, which does not work (its Python or pip is missing)." >&2
    fi
    rm -rf .venv
    "$python" -m venv .venv
    state="$(examine_venv)"
}

# Installs the packages of the file $1 into .venv, unless that was done before with the same files.
set_up() {
    make_venv
    local stamp=".venv/installed-$1"
    [ "$(cat "$stamp" 2>/dev/null)" != "$state" ] || return 0
    echo "Installing the packages of $1 into .venv. This is done once and takes some minutes." >&2
    rm -f .venv/installed-*
    .venv/bin/python -m pip install -q --disable-pip-version-check -r "$1" -c requirements.lock
    echo "$state" >"$stamp"
    [ "$1" = requirements.txt ] || echo "$state" >.venv/installed-requirements.txt # it includes these
}
