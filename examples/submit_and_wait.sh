#!/bin/sh
# Submit, wait, watch, and handle errors over the local API, with curl on the peer's Unix socket.
# Run it where `covey up -d` has been run; COVEY_HOME names the peer if it is not the default one.
set -eu
socket="${COVEY_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/covey}/run/api.sock"
call() { curl --silent --show-error --unix-socket "$socket" -H 'content-type: application/json' "$@"; }
field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4; }

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

# Watch: a task's events as server-sent events. The stream ends when the task has; `after=0` tells its whole way.
call --no-buffer "http://covey/v1/events?task=$id&after=0" | while read -r name value; do
  case $name in
    data:) echo "event $(echo "$value" | field state)" ;;
  esac
done

# An error is problem+json with a status, a stable type, and what can be done about it.
call --write-out '\nstatus %{http_code}\n' --data '{"skill": "chat", "zone": "somewhere"}' http://covey/v1/tasks
