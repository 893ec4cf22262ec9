#!/usr/bin/env bash
# Make sure that a Chromium is there for the tests of the desk.
set -euo pipefail
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo --non-interactive); fi
if command -v apt-get >/dev/null; then
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq chromium
else
    echo "install_chromium.sh: no Chromium here, and no apt-get to install it with. Install it and run this again." >&2
    exit 1
fi
