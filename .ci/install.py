"""Install runs-es from its checkout into .venv: `python .ci/install.py serve | test | bench | browser`.

`serve` is what a server needs; the others add their tools. uv does it where it is to be had, pip otherwise:
pip takes twenty times as long, mostly to compile files that are never imported. Only the standard library is used.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ".[embedded,langgraph]"
# What each needs beside the package: groups of pyproject.toml.
GROUPS = {"serve": [], "test": ["dev"], "bench": ["dev", "bench"], "browser": ["dev", "browser"]}
QUIET = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
# Options of pip, the variable by which uv knows each, and what stands between two values there.
FOR_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}


def main(what, folder=".venv"):
    """Install what `what` needs, unless it is there. Prints one line when there is something to do."""
    venv = ROOT / folder
    venv.mkdir(exist_ok=True)
    with only_one(venv / ".installing"):
        if is_current(venv, what):  # another make was quicker
            return
        print(f"Installing what `make {what}` needs into {folder} (once) ...", flush=True)
        install(venv, GROUPS[what])
        compile_modules(venv / "bin" / "python", everything=bool(GROUPS[what]))
        for name, groups in GROUPS.items():
            if set(groups) <= set(GROUPS[what]):
                (venv / f".{name}").touch()


def is_current(venv, what):
    """Say whether this was installed after pyproject.toml was last written."""
    stamp = venv / f".{what}"
    return stamp.exists() and stamp.stat().st_mtime >= (ROOT / "pyproject.toml").stat().st_mtime


def install(venv, groups):
    """Make the environment and install into it. Raises SystemExit when neither uv nor pip can do it."""
    python = venv / "bin" / "python"
    made = run(sys.executable, "-m", "venv", "--without-pip", venv)
    if made.returncode:
        sys.exit(
            f"'{sys.executable}' cannot make an environment. On Debian: apt install python3-venv. Or: make PYTHON=…"
        )
    asked = ["--editable", PACKAGE, *(f"--group={group}" for group in groups)]
    uv = uv_for(venv)
    if uv is not None:
        environment = {**indexes(pip_options(python)), **os.environ}
        done = run(uv, "pip", "install", "--quiet", "--python", python, *asked, env=environment, cwd=ROOT)
        if not done.returncode:
            return
        print(f"uv could not: {done.stderr.strip()}\nTrying pip ...", flush=True)
    bring_pip(python, newest=bool(groups))
    done = run(python, "-m", "pip", "install", "-qq", "--no-compile", *asked, cwd=ROOT, capture=False)
    if done.returncode:
        sys.exit("The installation failed; see above.")


def compile_modules(python, everything):
    """Compile what the command line imports first, or `everything`: the tests start a hundred processes.

    Without it each process compiles anew where PYTHONDONTWRITEBYTECODE is set, as in containers and CI.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if everything:
        run(python, "-m", "compileall", "-q", "-j", "0", python.parent.parent / "lib", env=environment)
    run(python, "-c", "import typer.rich_utils, runs_api.cli", env=environment, cwd=ROOT)


def uv_for(venv):
    """Find uv on the path, in the environment, or bring it there with a pip that is here already. None without."""
    for found in (shutil.which("uv"), shutil.which(str(venv / "bin" / "uv"))):
        if found:
            return found
    command = ["-m", "pip", "--python", venv / "bin" / "python", "install", "-qq", "--no-compile", "uv"]
    if run(sys.executable, *command).returncode:  # no pip here, or one from before 22.3
        python = venv / "bin" / "python"
        if run(python, "-m", "ensurepip").returncode or run(python, "-m", "pip", *command[4:]).returncode:
            return None
    return shutil.which(str(venv / "bin" / "uv"))


def bring_pip(python, newest):
    """Have a pip in the environment; only the `newest` knows groups. Raises SystemExit when there is none."""
    if run(python, "-m", "ensurepip").returncode:
        sys.exit(f"'{sys.executable}' has no pip to install with. On Debian: apt install python3-venv. Or install uv.")
    if newest and run(python, "-m", "pip", "install", "-qq", "pip>=25.1", capture=False).returncode:
        sys.exit("pip could not be brought up to date; see above.")


def pip_options(python):
    """Return what pip is told by its files and by PIP_* variables, by option; an empty dict without pip."""
    listed = run(sys.executable, "-m", "pip", "config", "list")
    if listed.returncode:
        listed = run(python, "-m", "pip", "config", "list")
    options = {}
    # Printed in the order in which they are read, so that a later one wins.
    for line in listed.stdout.splitlines() if not listed.returncode else ():
        name, _, value = line.partition("=")
        place, _, option = name.rpartition(".")
        if place in ("global", "install", ":env:"):
            options[option] = value.strip().strip("'\"").replace("\\n", " ").split()
    for option in FOR_UV:  # without pip the variables are still there
        value = os.environ.get("PIP_" + option.upper().replace("-", "_"))
        if value:
            options[option] = value.split()
    return options


def indexes(options):
    """Return pip's options as variables of uv, which reads none of pip's own."""
    told = {name: between.join(options[option]) for option, (name, between) in FOR_UV.items() if options.get(option)}
    if "UV_INDEX" in told:
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # the best of all indexes, as pip has it
    return told


def run(*command, env=None, cwd=None, capture=True):
    """Run a command to its end; with `capture` its output is kept and not shown."""
    pipe = subprocess.PIPE if capture else None
    words = [str(word) for word in command]
    environment = {**(os.environ if env is None else env), **QUIET}
    return subprocess.run(words, env=environment, cwd=cwd, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace")


@contextmanager
def only_one(place):
    """Hold a lock, so that two makes at once install one after the other."""
    import fcntl

    with open(place, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main(*sys.argv[1:])
