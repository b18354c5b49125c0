#!/usr/bin/env bash
# Install the service as a login item on a Mac: install.sh. Remove it: install.sh --remove. Needs no sudo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

label=dev.hadakv.service
program=$PWD/.venv/bin/hadakv-service
agent=$HOME/Library/LaunchAgents/$label.plist

command -v launchctl >/dev/null || { echo "launchd exists on macOS only; run instead: make serve" >&2; exit 1; }

if launchctl bootout "gui/$UID/$label" 2>/dev/null; then
  # bootout returns before the old process has stopped, and the new one cannot start while the port is in use.
  for _ in {1..90}; do
    launchctl print "gui/$UID/$label" >/dev/null 2>&1 || break
    sleep 0.5
  done
fi
if [[ ${1-} == --remove ]]; then
  rm -f "$agent"
  echo "removed $agent"
  exit
fi

[[ -x $program ]] || { echo "$program does not exist; run: make install-launchd" >&2; exit 1; }
mkdir -p "$HOME/Library/LaunchAgents" "$HOME/Library/Logs"
.venv/bin/python - "service/launchd/$label.plist" "$agent" "@PROGRAM@=$program" "@HOME@=$HOME" <<'PYTHON'
import sys
from pathlib import Path
from xml.sax.saxutils import escape

template, agent, *values = sys.argv[1:]
text = Path(template).read_text("utf-8")
for value in values:
    name, _, path = value.partition("=")
    text = text.replace(name, escape(path))
Path(agent).write_text(text, "utf-8")
PYTHON

launchctl bootstrap "gui/$UID" "$agent"
echo "hadakv runs at http://127.0.0.1:8765, now and after every login; log: ~/Library/Logs/hadakv.log"
