#!/usr/bin/env bash
# Run once, when Gradescope builds the image: a Python with the pinned packages in /opt/grader, which every user may read.
set -euo pipefail
root="${AUTOGRADER_ROOT:-/autograder}"
export DEBIAN_FRONTEND=noninteractive

apt-get update
apt-get install -y --no-install-recommends bubblewrap || echo "no bubblewrap: workers run under limits, as nobody"
python=""
for version in 3.12 3.13 3.11; do
    if command -v "python$version" >/dev/null || apt-get install -y --no-install-recommends "python$version"; then
        apt-get install -y --no-install-recommends "python$version-venv" && python="python$version" && break
    fi
done
if [ -z "$python" ]; then
    echo "Python 3.11, 3.12 or 3.13 cannot be installed here: choose a newer base image" >&2
    exit 1
fi
"$python" -m venv /opt/grader
/opt/grader/bin/python -m pip install --no-cache-dir -r "$root/source/requirements.txt"
chmod -R a+rX /opt/grader
chmod 700 "$root/source"
