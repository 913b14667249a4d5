"""The loop of an adapter (spec/95-adapter-protocol.md): one JSON request per line on stdin, one JSON answer per line on stdout.

A stranger's adapter may copy this file: it needs nothing but the standard library. `serve` takes the description of the implementation and
a dictionary of its commands; a command gets the request and returns the answer's result (a dict) or None, or raises Refused.
"""
import json
import os
import sys

VERSION = 1


class Refused(Exception):
    """A call that must not be answered: a code of the registry (error_codes.inc) and a message that names the thing and both values.

    `serve` adds the layer's name."""

    def __init__(self, code, message, tensor=None):
        super().__init__(message)
        self.answer = {"answer": "refused", "code": code, "message": message, **({"tensor": tensor} if tensor else {})}


def layer_of(request):
    """The layer that a call is about, as an answer carries it: every refusal names it (SQ-ERR-007)."""
    name = request.get("weight", {} if "module" in request else request).get("name")
    return {"layer": name} if name else {}


def serve(describe, commands):
    # What a library prints must not get between the answers: the real stdout is kept aside, and stdout becomes stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    contexts, made = set(), 0
    for line in sys.stdin:
        request = json.loads(line)
        command, answer = request["command"], {"answer": "ok"}
        try:
            if command == "start":
                if request["protocol"] != VERSION:
                    raise Refused("CALL_VERSION", f"protocol version {request['protocol']}, this adapter speaks {VERSION}")
                answer["result"] = describe
            elif command == "create":
                made += 1
                contexts.add(made)
                answer["result"] = {"context": made}
            elif command == "stop":
                pass
            elif command != "destroy" and command not in commands:
                answer = {"answer": "unsupported", "message": f"no command {command}"}
            elif request.get("context") not in contexts:
                raise Refused("CALL_STATE", f"there is no context {request.get('context')}")
            elif command == "destroy":
                contexts.remove(request["context"])
            else:
                answer["result"] = commands[command](request) or {}
        except Refused as refused:
            answer = {**refused.answer, **layer_of(request)}
        print(json.dumps({"id": request["id"], **answer}), file=out, flush=True)
        if command == "stop":
            return
