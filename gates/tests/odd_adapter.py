"""An adapter that offers dequantize alone (`norms`: the norm of queries and keys too), in the standard library, and misbehaves in the one way that
its argument names (adapter_test.cpp)."""
import json
import os
import struct
import sys
import time

MODE = sys.argv[1]
DESCRIBE = {"name": "odd", "version": "0.0.1", "abi_version": 1, "groups": ["linear"], "operations": ["dequantize"], "formats": ["bp8_v2"], "activation_dtypes": ["f32"]}
NORMS = ("rms_norm_rope_forward", "rms_norm_rope_backward") if MODE == "norms" else ()
DESCRIBE["operations"] += NORMS
contexts, made, calls = set(), 0, 0


def load(path):
    with open(path, "rb") as f:
        data = f.read()
    length = struct.unpack_from("<Q", data)[0]
    return {n: (r["shape"], data[8 + length + r["data_offsets"][0] : 8 + length + r["data_offsets"][1]]) for n, r in json.loads(data[8 : 8 + length]).items()}


def save(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def refused(code, message):
    return {"answer": "refused", "code": code, "message": message}


def dequantize(request):
    if "weight" not in request or "out" not in request["outputs"]:
        return refused("CALL_NULL", "no weight or no output")
    inputs, asked = load(request["folder"] + "/inputs.safetensors"), request["outputs"]["out"]
    (n, padded), codes = inputs["weight.qweight"]
    scales = struct.unpack(f"<{n}f", inputs["weight.scale"][1])
    rows, columns = asked["shape"]
    first = request["first_row"]
    if first < 0 or first + rows > n or columns != request["weight"]["in_features"]:
        return refused("CALL_SHAPE", f"rows [{first}, {first + rows}) of {n}, {columns} columns")
    if MODE == "wrong_number":
        scales = tuple(s * 2 for s in scales)
    out = [struct.unpack_from("b", codes, (first + r) * padded + c)[0] * scales[first + r] for r in range(rows) for c in range(columns)]
    dtype, shape, raw = "F32", [rows, columns], struct.pack(f"<{rows * columns}f", *out)
    path = request["folder"] + "/outputs.safetensors"
    if MODE == "wrong_shape":
        shape = [columns, rows]
    if MODE == "wrong_dtype":
        dtype = "I32"
    tensors = {"y" if MODE == "wrong_name" else "out": (dtype, shape, raw)}
    if MODE == "extra_tensor":
        tensors["extra"] = ("F32", [1], bytes(4))
    if MODE == "fifo":
        os.mkfifo(path)
    elif MODE != "no_file":
        save(path, tensors)
    if MODE == "short_file":
        os.truncate(path, os.path.getsize(path) - 1)
    if MODE == "large_file":
        os.truncate(path, 1 << 30)
    return {"answer": "ok"}


def rms_norm_rope(request):
    """Either direction, of F32 tensors."""
    forward = request["command"] == "rms_norm_rope_forward"
    name = "y" if forward else "dx"
    needed = {"x", "weight"} | (set() if forward else {"dy"})
    inputs = {n: (shape, struct.unpack(f"<{len(raw) // 4}f", raw)) for n, (shape, raw) in load(request["folder"] + "/inputs.safetensors").items()} if "folder" in request else {}
    if not needed <= inputs.keys() or name not in request["outputs"]:
        return refused("CALL_NULL", "a tensor is missing")
    (rows, columns), x = inputs["x"]
    (d,), weight = inputs["weight"]
    (places, _), table = inputs.get("rope", ([1, d], (1.0, 0.0) * (d // 2)))
    out = []
    for first in range(0, rows * columns, d):
        head, turn = x[first : first + d], table[first // columns % places * d :]
        r = (sum(v * v for v in head) / d + request["epsilon"]) ** -0.5
        pairs = [(i, turn[i], turn[i + 1]) for i in range(0, d, 2)]
        if forward:
            n = [v * r * w for v, w in zip(head, weight)]
            for i, cos, sin in pairs:
                out += [n[i] * cos - n[i + 1] * sin, n[i] * sin + n[i + 1] * cos]
            continue
        dy, wg = inputs["dy"][1][first : first + d], []
        for i, cos, sin in pairs:
            wg += [weight[i] * (dy[i] * cos + dy[i + 1] * sin), weight[i + 1] * (dy[i + 1] * cos - dy[i] * sin)]
        mean = sum(v * g for v, g in zip(head, wg)) / d
        out += [r * (g - v * r * r * mean) for v, g in zip(head, wg)]
    save(request["folder"] + "/outputs.safetensors", {name: ("F32", [rows, columns], struct.pack(f"<{rows * columns}f", *out))})
    return {"answer": "ok"}


def misbehave(request):
    """What goes to stdout instead of the answer; None: the answer itself."""
    if MODE == "garbage":
        return "Hello, I am ready!\n"
    if MODE == "hang":
        time.sleep(600)
    if MODE == "crash":
        print("about to fall", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 11)
    if MODE == "exit":
        sys.exit("no such layer")
    if MODE == "half_line":
        os.write(1, b'{"id": ')
        os._exit(0)
    if MODE == "wrong_id":
        return json.dumps({"id": request["id"] + 1, "answer": "ok"}) + "\n"
    if MODE == "two_lines":
        return json.dumps({"id": request["id"], "answer": "ok"}) + "\nand more\n"
    if MODE == "too_long":
        return json.dumps({"id": request["id"], "answer": "ok", "result": {"x": "y" * (2 << 20)}}) + "\n"
    if MODE == "endless":
        while True:
            os.write(1, b"x" * 65536)
    if MODE == "unknown_code":
        return json.dumps({"id": request["id"], **refused("CALL_ME", "later")}) + "\n"
    if MODE == "unknown_key":
        return json.dumps({"id": request["id"], "answer": "ok", "reslut": {}}) + "\n"
    if MODE == "refuses":
        return json.dumps({"id": request["id"], **refused("CALL_DTYPE", "not this one"), "layer": "l", "tensor": "t"}) + "\n"
    if MODE == "unsupported":
        return json.dumps({"id": request["id"], "answer": "unsupported"}) + "\n"
    return None


def answer(request):
    global made, calls
    command = request["command"]
    if command == "start":
        if MODE == "dies_at_start":
            sys.exit("cannot import name 'torch'")
        if MODE == "hangs_at_start":
            time.sleep(600)
        if request["protocol"] != (2 if MODE == "other_version" else 1):
            return refused("CALL_VERSION", f"protocol {request['protocol']} is not spoken here")
        return {"answer": "ok", "result": {**DESCRIBE, **({"groups": ["linear", "stream"]} if MODE == "describes_stream" else {}), **({"operations": 7} if MODE == "bad_description" else {})}}
    if command == "create":
        made += 1
        contexts.add(made)
        return {"answer": "ok", "result": {"context": "one" if MODE == "bad_context" else made}}
    if command == "stop":
        return {"answer": "ok"}
    if command not in ("destroy", "dequantize", *NORMS):
        return {"answer": "unsupported"}
    if request["context"] not in contexts:
        return refused("CALL_STATE", f"no context {request['context']}")
    if command == "destroy":
        contexts.remove(request["context"])
        return {"answer": "ok"}
    if command in NORMS:
        return rms_norm_rope(request)
    calls += 1
    if MODE == "crash_once" and not os.path.exists(sys.argv[2]):
        open(sys.argv[2], "w").close()
        os.kill(os.getpid(), 11)
    return dequantize(request)


for line in sys.stdin:
    request = json.loads(line)
    text = misbehave(request) if request["command"] == "dequantize" else None
    if text is None:
        text = json.dumps({"id": request["id"], **answer(request)}) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()
    if MODE == "unasked" and request["command"] == "create":
        time.sleep(0.1)
        print("context made", flush=True)
    if request["command"] == "stop" and MODE != "ignores_stop":
        break
if MODE == "ignores_stop":
    time.sleep(600)
