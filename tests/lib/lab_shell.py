"""``./dev lab``: a root shell in the lab; with words, one command there, whose exit code it returns.

``./dev lab pytest ...`` is pytest out here with its tests carried out in the lab.
"""
from __future__ import annotations

import os
import shutil
import sys
import termios
from pathlib import Path

from kvmnet.errors import KvmnetError
from lib.lab import Lab, LabFailed, boot, finish
from lib.lab_agent import ENVIRONMENT
from lib.lab_image import LabImage, build, image_folder

DAY = 86400.0


def main(words: list[str]) -> int:
    if words[:1] == ["pytest"]:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", "--lab", *words[1:]])
    try:
        image = build(image_folder(), say)
        if words:
            with boot(image) as lab:
                return command(lab, words)
        if not sys.stdin.isatty():
            say("a shell needs a terminal; ./dev lab COMMAND does not")
            return 64
        shell(image)
    except (LabFailed, KvmnetError) as failed:
        say(str(failed))
        return 125
    except KeyboardInterrupt:
        return 130
    return 0


def command(lab: Lab, words: list[str]) -> int:
    """Several words are a program and its arguments; one is a line for the shell."""
    streams = {"out": sys.stdout.buffer, "err": sys.stderr.buffer}

    def show(name: str, data: bytes) -> None:
        streams[name].write(data)
        streams[name].flush()

    argv = words if len(words) > 1 else ["bash", "-c", words[0]]
    return lab.program(argv, DAY, env={"PATH": path()}, listen=show).code


def shell(image: LabImage) -> None:
    """Until the shell ends. QEMU has this terminal meanwhile; it is put back as it was."""
    before = termios.tcgetattr(sys.stdin)
    say("booting; the lab ends with its shell, and everything made in it is gone then")
    try:
        with boot(image, terminal=True) as lab:
            size = shutil.get_terminal_size()
            lab.sh(f"stty rows {size.lines} cols {size.columns} -F /dev/ttyS0")
            env = {"PATH": path(), "PS1": r"lab:\w# ", "TERM": os.environ.get("TERM", "linux")}
            finish(lab.stream("terminal", {"argv": ["bash", "--norc", "-i"]}, DAY, env=env))
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def path() -> str:
    """The lab's own search path behind this environment's programs: kvmnet, python, pytest."""
    return f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
