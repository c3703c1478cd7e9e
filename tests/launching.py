"""Launchers under test: run with stand-ins for the programs that reach clouds, on a PATH that has nothing else."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent

# Arguments that shells, YAML and Kubernetes would each read in their own way.
AWKWARD = ('context.instruction=it\'s "so" $(HOME) $$ @NAME@ \\n # only: spot', "a.b=[1, 2]", "c=tab\tline\nend", "d=")

TOOLS = (
    "awk bash cat chmod cp date dirname env find git grep gzip head hostname id mkdir mktemp nohup paste rm sed seq"
    " setsid sleep sort tail tar tee touch tr true uniq wc"
).split()

# Plays the answers of scenario.json to the calls that contain their words: one after the other, the last for ever.
# An answer has out, err and rc, or `resource`, which is printed by --format=value(a.b,c.d) as gcloud does.
STANDIN = """#!{python} -SE
import json, os, re, sys
folder = {folder!r}
name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
record = {{"argv": [name, *argv], "stdin": "" if name != "kubectl" or "-" not in argv[-1] else sys.stdin.read()}}
with open(folder + "/calls.jsonl", "a") as file:
    file.write(json.dumps(record) + chr(10))
with open(folder + "/scenario.json") as file:
    scenario = json.load(file)
line = " ".join([name, *argv])
for number, (words, answers) in enumerate(scenario):
    if words in line:
        place = folder + "/count_%d" % number
        played = os.path.getsize(place) if os.path.exists(place) else 0
        with open(place, "a") as file:
            file.write(".")
        answer = answers[min(played, len(answers) - 1)]
        break
else:
    answer = {{}}
form = next((a for a in argv if a.startswith("--format=value(")), None)
if "resource" in answer and form:
    cells = []
    for key in re.search(r"\\((.*)\\)", form).group(1).split(","):
        value = answer["resource"]
        for part in key.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        cells.append(str(value))
    print(chr(9).join(cells))
sys.stdout.write(answer.get("out", ""))
sys.stdout.flush()
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("rc", 0))
"""

# Stands in for Python: writes down how it was called and plays a training of some seconds that ends well when told to.
TRAINER = """#!{python} -SE
import json, os, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
with open(os.environ["TRAINER_CALLS"], "a") as file:
    wanted = ("JOPSD_", "JAX_", "XLA_", "NCCL_", "no_grpc")
    environment = {{k: v for k, v in os.environ.items() if k.startswith(wanted)}}
    file.write(json.dumps({{"argv": sys.argv[1:], "env": environment, "pid": os.getpid()}}) + chr(10))
end = time.time() + float(os.environ.get("TRAINER_SECONDS", "0"))
while time.time() < end and not told:
    time.sleep(0.02)
if told:
    time.sleep(0.5)
    print("saved, told", len(told), "times", flush=True)
    sys.exit(int(os.environ.get("JOPSD_STOPPED_EXIT", "0")))
print("RESOURCE_EXHAUSTED: Quota limit 'TPUV9PerProjectPerRegionForTPUAPI' of a log" if len(sys.argv) else "")
sys.exit(int(os.environ.get("TRAINER_RC", "0")))
"""


@cache
def _found(tool: str) -> str | None:
    return shutil.which(tool)


class Bench:
    """A folder with a PATH of its own. standins: programs that play `scenario`: pairs of words and answers."""

    def __init__(self, folder: Path, *standins: str, scenario=()):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for tool in TOOLS:
            if found := _found(tool):
                (self.bin / tool).symlink_to(found)
        for name in standins:
            self.program(name, STANDIN.format(python=sys.executable, folder=str(folder)))
        self.trainer = self.program("trainer", TRAINER.format(python=sys.executable))
        self.play(*scenario)

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def play(self, *scenario) -> None:
        (self.folder / "scenario.json").write_text(json.dumps(scenario), encoding="utf-8")

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": str(self.bin),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "PYTHON": str(self.trainer),
            "TRAINER_CALLS": str(self.folder / "trainer.jsonl"),
            "JOPSD_PAUSE": "0",
            "JOPSD_POLL": "0",
            **more,
        }

    def start(self, *command: str, stdin: str = "", cwd: Path = REPO, **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(x) for x in command],
            cwd=cwd,
            env=self.environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, stdin: str = "", cwd: Path = REPO, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(x) for x in command],
            cwd=cwd,
            env=self.environment(**more),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        """What was called, in order, with arguments."""
        return [record["argv"] for record in self._lines("calls.jsonl")]

    def stdins(self) -> list[str]:
        return [record["stdin"] for record in self._lines("calls.jsonl")]

    def trainings(self) -> list[dict]:
        return self._lines("trainer.jsonl")

    def _lines(self, name: str) -> list[dict]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def commands(text: str) -> list[list[str]]:
    """Lines of a dry run as words."""
    return [shlex.split(line) for line in text.splitlines()]


def option(argv: list[str], name: str) -> str | None:
    """The value of `--name=value` in a call."""
    return next((word.split("=", 1)[1] for word in argv if word.startswith(f"{name}=")), None)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
