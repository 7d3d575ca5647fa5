#!/usr/bin/env bash
# Fill a folder with the npm packages that the tests of `board` need in a browser:
#     tests/board_assets.sh FOLDER && DOGCAT_BOARD_ASSETS=FOLDER make test
set -euo pipefail
table=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/utils/board/page.txt
mkdir -p "$1"
cd "$1"
packages=$(grep -v '^#' "$table" | cut -d' ' -f3 | cut -d/ -f1 | sort -u)
npm pack --silent $packages  # one .tgz each
