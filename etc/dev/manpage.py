"""Prints docs/codex-lb.1: the words of codex-lb.1.in, with the commands and options that the program has.

Usage: manpage.py BINARY
"""

import json
import os
import re
import subprocess
import sys
import textwrap

binary = sys.argv[1]
here = os.path.dirname(os.path.abspath(__file__))
# Described once, in OPTIONS.
COMMON = ("data-dir", "url", "json", "version", "help")


def escaped(text):
    text = text.replace("\\", "\\e").replace("--", "\\-\\-").replace("~", "\\(ti")
    text = re.sub(r"(?<=\s)-(?=\s|$)", "\\-", text)
    return "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in text)


def prose(text):
    """Text lines of mdoc: a sentence begins a line, and no line reads as a macro."""
    out = []
    for sentence in re.split(r"(?<=[.:;?]) (?=[A-Z\"])", " ".join(text.split())):
        for line in textwrap.wrap(escaped(sentence), 78, break_on_hyphens=False, break_long_words=False):
            out.append("\\&" + line if line[0] in ".'" else line)
    return out


def name(argument):
    return argument["preferredName"]["name"]


def flags(argument):
    return " , ".join(f"Fl {'-' if n['kind'] == 'long' else ''}{n['name']}" for n in argument["names"])


def shown(things):
    return [t for t in things if t["shouldDisplay"]]


def own(command):
    return [a for a in shown(command.get("arguments", [])) if a["kind"] == "positional" or name(a) not in COMMON]


def usage(argument):
    value = argument["valueName"]
    words = f"Ar {value}" if argument["kind"] == "positional" else f"Fl -{name(argument)}"
    if argument["kind"] == "option":
        words += f" Ar {value}"
    words += " ..." if argument["isRepeating"] else ""
    return f"Oo {words} Oc" if argument["isOptional"] else words


def described(argument):
    tag = f"Ar {argument['valueName']}" if argument["kind"] == "positional" else flags(argument)
    if argument["kind"] == "option":
        tag += f" Ar {argument['valueName']}"
    text = argument.get("abstract", "")
    if "defaultValue" in argument:
        text = f"{text.rstrip('.')} (default: {argument['defaultValue']})."
    return [f".It {tag}", *prose(text)]


def commands(command, path):
    """Those without commands of their own, with what they take."""
    below = [c for c in shown(command.get("subcommands", [])) if c["commandName"] != "help"]
    if below:
        return [line for c in below for line in commands(c, path + [c["commandName"]])]
    taken = own(command)
    out = [" ".join([f".It Ic {' '.join(path)}", *map(usage, taken)])]
    out += prose(command["abstract"])
    if command.get("discussion"):
        out += prose(command["discussion"])
    if taken:
        out += [".Bl -tag -width Ds -compact", *(line for a in taken for line in described(a)), ".El"]
    common = [a for a in shown(command.get("arguments", [])) if a["kind"] != "positional" and name(a) in COMMON[:3]]
    if common:
        words = [f".Fl -{name(a)}" for a in common]
        out += ["Also takes", *(f"{w} ," if w != words[-1] else f"{w} ." for w in words)]
    return out


def common(root):
    """Options that several commands share, each in the words that most of them have for it."""
    found = {n: [] for n in COMMON}

    def walk(command):
        for argument in shown(command.get("arguments", [])):
            if argument["kind"] != "positional" and name(argument) in COMMON:
                found[name(argument)].append(argument)
        for c in shown(command.get("subcommands", [])):
            walk(c)

    walk(root)
    return [line for same in found.values() for line in described(max(same, key=same.count))]


root = json.loads(subprocess.run([binary, "--experimental-dump-help"], check=True, capture_output=True, text=True).stdout)["command"]
page = open(os.path.join(here, "codex-lb.1.in"), encoding="ascii").read()
parts = {"@COMMANDS@": commands(root, []), "@OPTIONS@": common(root)}
for mark, lines in parts.items():
    page = page.replace(mark, "\n".join(lines))
sys.stdout.write(page)
