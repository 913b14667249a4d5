#!/usr/bin/env python3
"""Validates spec/registry/architectures/*.json: against spec/schema/architecture.schema.json, and the references inside each file."""
import json
import pathlib
import sys

import jsonschema

ROOT = pathlib.Path(__file__).resolve().parent.parent


def references(family):
    """Yields what a file refers to without defining it."""
    flags = set(family["flags"]) | {"last"}
    counts = {i["count"] for i in family["instances"] if "count" in i}
    if family["native_scheme"] not in family["schemes"]:
        yield "native_scheme is not one of schemes"
    for instance in family["instances"]:
        template = family["templates"].get(instance["template"])
        if template is None:
            yield f"instance {instance['diffusers']}: no template {instance['template']}"
            continue
        known = flags | set(instance.get("flags", {})) | set(template.get("flags", {}))
        for module in template["modules"]:
            for flag in module.get("when", []):
                if flag.lstrip("!") not in known:
                    yield f"{instance['template']}.{module['diffusers']}: no flag {flag}"
    for variant in family["variants"]:
        for name, expected in (("flags", set(family["flags"])), ("dims", set(family["dims"])), ("counts", counts)):
            if set(variant[name]) != expected:
                yield f"variant {variant['id']}: {name} are {sorted(variant[name])}, expected {sorted(expected)}"


def main():
    schema = json.loads((ROOT / "schema/architecture.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    files, problems, ids = sorted((ROOT / "registry/architectures").glob("*.json")), [], set()
    for path in files:
        family = json.loads(path.read_text(encoding="utf-8"))
        found = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(family)] or list(references(family))
        for variant in family.get("variants", []):
            if variant.get("id") in ids:
                found.append(f"variant {variant['id']} is defined twice")
            ids.add(variant.get("id"))
        problems += [f"{path.name}: {text}" for text in found]
    print("\n".join(problems) or f"{len(files)} files, {len(ids)} architectures: good")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())
