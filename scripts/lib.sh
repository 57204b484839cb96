# Shared by the scripts here: a virtual environment with the pinned versions. Needs only Python and Debian's basics.

python_for_sidestep() {  # the newest fit Python on PATH, or $PYTHON
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "${0##*/}: no Python 3.11 to 3.14 found; install one (Debian: apt install python3 python3-venv) or set PYTHON" >&2
  return 2
}

environment() {  # environment FOLDER EXTRAS: up to date, in seconds when nothing changed
  local folder=$1 extras=$2 python wanted
  python=$(python_for_sidestep) || exit 2
  wanted="$extras $("$python" -VV) $(cat pyproject.toml constraints.txt transport/pyproject.toml | cksum) $PWD"
  # An environment that has more extras than asked for serves as well.
  if [ -x "$folder/bin/python" ] && grep -qxF "$wanted" "$folder/.sidestep" 2>/dev/null; then return; fi
  echo "${0##*/}: preparing $folder (once; about a minute)" >&2
  if [ ! -x "$folder/bin/python" ] || ! grep -qF "$("$python" -VV)" "$folder/.sidestep" 2>/dev/null; then
    rm -rf "$folder"
    if ! "$python" -m venv "$folder" >/dev/null 2>&1; then
      # Debian ships venv's pip apart from Python; the system's own pip can install into an environment without one.
      rm -rf "$folder"
      if ! { "$python" -m pip --version && "$python" -m venv --without-pip "$folder" &&
        "$python" -m pip --python "$folder/bin/python" install -q pip; } >/dev/null 2>&1; then
        rm -rf "$folder"
        echo "${0##*/}: $python cannot make a virtual environment; Debian: apt install python3-venv" >&2
        exit 2
      fi
    fi
  fi
  "$folder/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$extras]" -e ./transport || {
    echo "${0##*/}: installing failed; is a package index reachable?" >&2
    exit 2
  }
  echo "$wanted" >>"$folder/.sidestep"
}
