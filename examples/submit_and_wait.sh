#!/bin/sh
# Submit, wait, watch, and handle errors over the local API, with curl on the peer's Unix socket.
# Run it where `covey up -d` has been run; COVEY_HOME names the peer if it is not the default one.
set -eu
socket="${COVEY_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/covey}/run/api.sock"
call() { curl --silent --show-error --unix-socket "$socket" -H 'content-type: application/json' "$@"; }
field() { sed -n "s/.*\"$1\":\"\\([^\"]*\\)\".*/\\1/p" | head -n 1; }

if ! [ -S "$socket" ]; then
  echo "no daemon is running on $socket; start it with: covey up -d" >&2
  exit 3
fi
call http://covey/v1/status | sed 's/,"addresses".*//'
echo

input='{"schema": {"type": "object", "properties": {"machine": {"type": "string"}}}, "text": "pump_a is hot"}'

# Submit and wait up to 60 s in one request. The key makes it safe to repeat: it is one task, however often.
call --data "{\"skill\": \"extract\", \"input\": $input, \"key\": \"shell-1\"}" 'http://covey/v1/tasks?wait=60'
echo

# Submit now, wait later.
id=$(call --data "{\"skill\": \"extract\", \"input\": $input}" http://covey/v1/tasks | field id)
echo "task $id"
call "http://covey/v1/tasks/$id?wait=60" | field state

# Watch: events since the daemon's start, as server-sent events, until this task is done.
call --no-buffer 2>/dev/null 'http://covey/v1/events?after=0' | grep --max-count 1 "\"id\":\"$id\".*\"state\":\"done\"" | cut -c 1-60

# An error is problem+json with a status, a stable type, and what can be done about it.
call --write-out '\nstatus %{http_code}\n' --data '{"skill": "chat", "zone": "somewhere"}' http://covey/v1/tasks
