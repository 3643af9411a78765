"""Answers requests over stdin and stdout.

A request is a line of JSON followed by as many bytes as its "bytes" says. An answer has the same form. `serve` takes the
answer to "about", and a function for each other command. The function takes the request and its bytes, and returns the
fields of the answer and its bytes.

The process ends when its stdin does.
"""
import json
import os
import sys
import time


def serve(about, commands):
    requests = sys.stdin.buffer
    # Libraries that print must not do it between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(header, payload=b""):
        answers.write(json.dumps({**header, "bytes": len(payload)}).encode() + b"\n")
        answers.write(payload)
        answers.flush()

    for line in requests:
        request = json.loads(line)
        payload = requests.read(request.get("bytes", 0))
        try:
            command = request["command"]
            if command == "about":
                answer({"ok": True, "note": about()})
            elif command == "hang":  # The self-test's: an engine that never answers.
                time.sleep(3600)
            elif command in commands:
                header, payload = commands[command](request, payload)
                answer({"ok": True, **header}, payload)
            else:
                answer({"ok": False, "error": f"unknown command {command!r}"})
        except Exception as error:  # Whatever an engine says belongs into the report.
            answer({"ok": False, "error": f"{type(error).__name__}: {error}"[:500]})
