"""Submit, wait, watch, and handle errors over the local API, with the Python client.

Run it where `covey up -d` has been run: `python examples/submit_and_wait.py`.
"""

import sys

from covey.peer.client import ClientError, DaemonNotRunning, TaskFailed, connect

SENTENCE = "pump_a reports a vibration of 9.8 mm/s"
SCHEMA = {
    "type": "object",
    "properties": {"machine": {"type": "string"}, "value": {"type": "number"}},
    "required": ["machine", "value"],
}


def main() -> int:
    with connect() as peer:
        try:
            status = peer.status()
        except DaemonNotRunning as error:
            print(error, file=sys.stderr)
            return error.exit_code
        print(f"{status.name} in mesh {status.mesh_name}, {status.peers_up} peers linked")

        # Submit and wait in one request. The key makes it safe to repeat: it is one task, however often.
        task = peer.run("extract", {"schema": SCHEMA, "text": SENTENCE}, key="example-1", wait_s=60)
        try:
            fields = peer.result(task)["items"][0]["fields"]
        except TaskFailed as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{task.peer_name} read: {fields['machine']} = {fields['value']}")

        # Submit now, look later: watch its states until it is finished.
        task = peer.submit("extract", {"schema": SCHEMA, "text": SENTENCE})
        for event in peer.events(task=task.id):
            if event.task is not None:
                print(f"{event.task.state}: {event.task.reason}")

        # An error says what is wrong, and what can be done about it.
        try:
            peer.submit("no-such-skill", zone="somewhere")
        except ClientError as error:
            print(f"refused ({error.kind}): {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
