#!/bin/sh
# Prints a Python that can make this project's environments: 3.11, 3.12 or 3.13, with venv and pip.
# PYTHON=/path/to/python in the environment is the only one tried when it is set.
found=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    # Asking for the version also passes over launchers that exist but do not start.
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in
    3.11 | 3.12 | 3.13)
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "$candidate"
            exit 0
        fi
        found="$found, $candidate is $version but has no venv module (Debian and Ubuntu: apt install python$version-venv)"
        ;;
    *) found="$found, $candidate is $version" ;;
    esac
done
found=${found#, }
echo "This book needs Python 3.11, 3.12 or 3.13 on the path, or named by PYTHON=/path/to/python; found: ${found:-none}." >&2
exit 1
