#!/usr/bin/env python3
"""Puts a switch into every arithmetic decision of C++ sources, so that one build holds every mutant.

  instrument.py --root TREE --out FOLDER FILE...

Writes FOLDER/FILE for each FILE (a path below TREE) and FOLDER/points.json, the list of mutation points: id, file, line, column, what
stands there, what the switch puts in its place. The environment variable SQUAREQ_MUTATION=ID turns one of them on (switch.hpp).

The sources are read as tokens, not as an AST. What makes that safe is the house format (.clang-format): a binary operator has a space on
both sides, a pointer's star, a reference's ampersand and a template's brackets do not. What the reading gets wrong does not compile.

  token                       becomes
  + - * / % << >> & |         its counterpart (+ and -, * and +, / and *, ...)
  < <= > >= == !=             the other side of the boundary, and the opposite
  += *= /=                    its counterpart, and plain assignment for +=
  -x  !x  ++x  x--            the operand; a step of 2
  an operand of && or ||      dropped
  a condition without operator  negated
  integers, 127.0f, true      one more and one less (0: one more), false
  other floats                larger by 2^-10
  rint, fabs, fmax, isnan ... another function of the same type (CALLS)

Left alone: texts of error messages (arguments of refuse() and Error(), string concatenation), declarations, preprocessor lines.
"""
import argparse
import json
import pathlib
import re
import sys

TOKEN = re.compile(r"""
    (?P<comment>//[^\n]*|/\*.*?\*/) | (?P<hash>^[ \t]*\#(?:[^\n\\]|\\.)*$) | (?P<string>"(?:[^"\\]|\\.)*") | (?P<char>'(?:[^'\\]|\\.)*')
  | (?P<number>0[xX][0-9a-fA-F.]+(?:[pP][+-]?\d+)?[fFuUlL]*|\d[\d']*\.?\d*(?:[eE][+-]?\d+)?[fFuUlL]*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<op><<=|>>=|->\*|<=>|\.\.\.|::|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||\+=|-=|\*=|/=|%=|&=|\|=|\^=|[-+*/%<>=!&|^~?:;,.(){}\[\]])
""", re.VERBOSE | re.DOTALL | re.MULTILINE)

BINARY = {"+": ["-"], "-": ["+"], "*": ["+"], "/": ["*"], "%": ["/"], "<<": [">>"], ">>": ["<<"], "&": ["|"], "|": ["&"],
          "<": ["<=", ">="], "<=": ["<", ">"], ">": [">=", "<="], ">=": [">", "<"], "==": ["!="], "!=": ["=="]}
COMPOUND = {"+=": ["-=", "="], "*=": ["+="], "/=": ["*="]}
CALLS = {"std::rint": ["std::round", "std::trunc"], "std::fabs": ["sqm::same"], "std::fmax": ["std::fmin"], "std::fmin": ["std::fmax"],
         "std::isnan": ["std::isinf"], "std::isinf": ["std::isnan"], "std::isfinite": ["sqm::not_nan"], "std::sqrt": ["sqm::same"],
         "std::tanh": ["sqm::same"], "std::erf": ["sqm::same"], "std::exp": ["sqm::same"], "std::copysign": ["sqm::first"],
         "std::max": ["std::min"], "std::min": ["std::max"]}
MESSAGES = {"refuse", "Error"}
COMPARISONS = {"<", "<=", ">", ">=", "==", "!=", "&&", "||", "!"}
OPEN, CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


class Token:
    def __init__(self, kind, text, start):
        self.kind, self.text, self.start, self.end = kind, text, start, start + len(text)


class Source:
    """One file: its tokens, the edits, and the points found so far."""

    def __init__(self, name, text, points):
        self.name, self.text, self.points = name, text, points
        self.tokens = [Token(m.lastgroup, m.group(), m.start()) for m in TOKEN.finditer(text) if m.lastgroup not in ("comment", "hash")]
        self.match = self.brackets()
        self.message = self.messages()
        self.replacements, self.wraps = {}, []

    def brackets(self):
        stack, match = [], {}
        for i, t in enumerate(self.tokens):
            if t.kind == "op" and t.text in OPEN:
                stack.append(i)
            elif t.kind == "op" and t.text in CLOSE:
                match[i] = stack.pop()
                match[match[i]] = i
        assert not stack, self.name
        return match

    def messages(self):
        """Indices of tokens inside refuse(...) and Error(...)."""
        inside = set()
        for i, t in enumerate(self.tokens[:-1]):
            if t.text in MESSAGES and self.tokens[i + 1].text == "(":
                inside.update(range(i, self.match[i + 1] + 1))
        return inside

    def point(self, token, original, replacements):
        """Registers one point per replacement; returns the id of the first."""
        line = self.text.count("\n", 0, token.start) + 1
        begin = self.text.rfind("\n", 0, token.start) + 1
        source = self.text[begin:self.text.find("\n", token.start)]
        first = len(self.points) + 1
        for r in replacements:
            self.points.append({"id": len(self.points) + 1, "file": self.name, "line": line, "column": token.start - begin + 1, "from": original, "to": r, "source": source.strip()})
        return first

    def replace(self, token, text):
        assert token.start not in self.replacements, (self.name, token.text)
        self.replacements[token.start] = (token.end, text)

    def spaced(self, t):
        after = self.text[t.end]
        return self.text[t.start - 1].isspace() and after.isspace()

    def operand(self, i, step, stops):
        """Walks from token i over whole bracket groups until one of `stops` at this depth; returns the last token inside."""
        j = i
        while True:
            t = self.tokens[j]
            if t.kind == "op" and (t.text in OPEN if step > 0 else t.text in CLOSE):
                j = self.match[j]
            nxt = self.tokens[j + step]
            if nxt.kind == "op" and (nxt.text in stops or (nxt.text in CLOSE if step > 0 else nxt.text in OPEN)) or nxt.text == "return":
                return j
            j += step

    def wrap(self, first, last, before, after):
        self.wraps.append((self.tokens[first].start, self.tokens[last].end, before, after))

    def source_of(self, first, last):
        return self.text[self.tokens[first].start:self.tokens[last].end]

    # ------------------------------------------------------------ one rule per kind of token

    def run(self):
        for i, t in enumerate(self.tokens[:-1]):
            if t.text == "constexpr" and self.tokens[i - 1].text != "if":
                self.replace(t, "const")
            if i in self.message or self.tokens[i - 1].text == "operator":
                continue
            if t.kind == "number":
                self.number(t)
            elif t.text in ("true", "false"):
                other = "false" if t.text == "true" else "true"
                self.replace(t, f"sqm::pick({self.point(t, t.text, [other])}, {t.text}, {other})")
            elif t.text == "if":
                self.condition(i)
            elif t.text == "std" and "std::" + self.tokens[i + 2].text in CALLS:
                self.call(i)
            elif t.kind == "op":
                self.operator(i, t)
        return self.write()

    def number(self, t):
        body, suffix = re.fullmatch(r"(0[xX][0-9a-fA-F.]+(?:[pP][+-]?\d+)?|[^fFuUlL]+)([fFuUlL]*)", t.text).groups()
        if re.fullmatch(r"0[xX][0-9a-fA-F]+", body):
            if suffix in ("f", "F"):
                body, suffix = body + suffix, ""
            other = [hex(int(body, 16) + 1) + suffix, hex(int(body, 16) - 1) + suffix]
        elif re.fullmatch(r"\d+", body):
            other = [f"{int(body) + d}{suffix}" for d in ((1,) if int(body) == 0 else (1, -1))]
        elif body[:2].lower() != "0x" and float(body).is_integer():
            other = [f"{float(body) + d}{suffix}" for d in (1, -1)]
        else:
            other = [f"({t.text} * 1.0009765625{suffix})"]
        self.replace(t, f"sqm::pick({self.point(t, t.text, other)}, {', '.join([t.text, *other])})")

    def condition(self, i):
        """if (x): negated, where nothing inside is mutated as a comparison anyway."""
        j = i + 1 if self.tokens[i + 1].text == "(" else i + 2
        if self.tokens[j].text != "(":
            return
        first, last = j + 1, self.match[j] - 1
        for k in range(first, last + 1):
            if self.tokens[k].text == ";":
                first = k + 1
        if any(self.tokens[k].text in COMPARISONS | {"="} for k in range(first, last + 1)):
            return
        p = self.point(self.tokens[first], self.source_of(first, last), ["!(...)"])
        self.wrap(first, last, f"sqm::on({p}) != static_cast<bool>(", ")")

    def call(self, i):
        t, name = self.tokens[i], "std::" + self.tokens[i + 2].text
        end = i + 2
        arguments = ""
        if self.tokens[end + 1].text == "<":
            close = next(k for k in range(end + 1, end + 9) if self.tokens[k].text == ">")
            arguments = self.text[self.tokens[end + 1].start:self.tokens[close].end]
            end = close
        if self.tokens[end + 1].text != "(":
            return
        first = self.point(t, name, CALLS[name])
        forward = lambda f: f"[](auto... a) {{ return {f}{arguments if f.startswith('std') else ''}(a...); }}"
        self.replacements[t.start] = (self.tokens[end].end, f"sqm::choose({first}, {', '.join(forward(f) for f in [name, *CALLS[name]])})")

    def operator(self, i, t):
        before, after = self.tokens[i - 1], self.tokens[i + 1]
        if t.text in BINARY and self.spaced(t):
            if "string" in (before.kind, after.kind) and t.text == "+":
                return
            self.replace(t, f"{t.text} sqm::Point{{{self.point(t, t.text, BINARY[t.text])}}} {t.text}")
        elif t.text in COMPOUND:
            self.replace(t, f"{t.text} sqm::Point{{{self.point(t, t.text, COMPOUND[t.text])}}} {t.text}")
        elif t.text == "-" and not self.text[t.end].isspace():
            self.replace(t, f"sqm::Minus{{{self.point(t, '-x', ['x'])}}} ->* ")
        elif t.text == "!" and not self.text[t.end].isspace():
            self.replace(t, f"sqm::Not{{{self.point(t, '!x', ['x'])}}} ->* ")
        elif t.text == "++" and after.kind == "name":
            last = i + 1
            while self.tokens[last + 1].text in ("->", "."):
                last += 2
            self.replace(t, "(")
            self.wraps.append((after.start, self.tokens[last].end, "", f" += sqm::pick({self.point(t, '++', ['+= 2'])}, 1, 2))"))
        elif t.text == "--" and before.kind == "name":
            self.replace(t, "")
            self.wraps.append((before.start, before.end, f"sqm::decrement({self.point(t, '--', ['-= 2'])}, ", ")"))
        elif t.text in ("&&", "||") and self.spaced(t):
            stops = {"||", "?", ":", ",", ";", "="} | ({"&&"} if t.text == "&&" else set())
            neutral = ("sqm::on({}) || (", "true") if t.text == "&&" else ("!sqm::on({}) && (", "false")
            right_last = self.operand(i + 1, 1, stops)
            sides = [(i + 1, right_last)]
            left_first = self.operand(i - 1, -1, stops)
            if self.tokens[left_first - 1].text != t.text:  # else it is the right operand of the operator before
                sides.insert(0, (left_first, i - 1))
            for first, last in sides:
                p = self.point(self.tokens[first], self.source_of(first, last), [neutral[1]])
                self.wrap(first, last, "(" + neutral[0].format(p), "))")
        elif t.text == "?":
            first = self.operand(i - 1, -1, {"=", ",", ";", "?", ":", "||", "&&"})
            if any(self.tokens[k].text in COMPARISONS for k in range(first, i)) or self.tokens[first - 1].text in ("||", "&&"):
                return
            p = self.point(self.tokens[first], self.source_of(first, i - 1), ["!(...)"])
            self.wrap(first, i - 1, f"(sqm::on({p}) != static_cast<bool>(", "))")

    def write(self):
        opens, closes = {}, {}
        for w in self.wraps:
            opens.setdefault(w[0], []).append(w)
            closes.setdefault(w[1], []).append(w)
        out, at = [], 0
        positions = sorted(set(opens) | set(closes) | set(self.replacements))
        for p in positions:
            if p < at:  # inside a replaced token group
                assert p not in opens and p not in closes and p not in self.replacements, (self.name, self.text[p:p + 20])
                continue
            out.append(self.text[at:p])
            at = p
            out += [w[3] for w in sorted(closes.get(p, []), key=lambda w: -w[0])]
            out += [w[2] for w in sorted(opens.get(p, []), key=lambda w: -w[1])]
            if p in self.replacements:
                end, text = self.replacements[p]
                out.append(text)
                at = end
        return "".join(out) + self.text[at:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    points = []
    for name in args.files:
        code = Source(name, (args.root / name).read_text(encoding="utf-8"), points).run()
        target = args.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f'#include "gates/mutation/switch.hpp"\n#line 1 "{name}"\n' + code, encoding="utf-8")
    (args.out / "points.json").write_text("[\n" + ",\n".join(json.dumps(p) for p in points) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
