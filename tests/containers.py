"""What a test of real images needs where no registry is reached: a base, and a podman of its own.

The base image is made of the files of the Debian packages installed on this machine, unchanged and
without what was added locally; podman keeps all it makes in one folder, told by its environment.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

WANTED = (
    "base-files base-passwd bash dash coreutils grep sed findutils passwd login libc-bin tar gzip "
    "ca-certificates netbase tzdata libgcc-s1 libstdc++6 python3 hostname mawk debianutils"
).split()
NOT_NEEDED = (
    "perl perl-base debconf dpkg openssl media-types mailcap python3-distutils python3-lib2to3 "
    "init-system-helpers libdebconfclient0 usrmerge"
).split()
DROPPED = re.compile(
    r"^/usr/share/(doc|man|info|locale|lintian|bug|menu|bash-completion|i18n/locales|pixmaps)/"
    r"|^/usr/games/|/__pycache__/|^/usr/lib/python3\.\d+/(test|idlelib|tkinter|turtledemo|lib2to3)/"
)
FOLDERS = "/tmp /var/tmp /root /proc /sys /dev /run /home /etc/ssl/certs /usr/local/bin".split()
MODES = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700, "/proc": 0o555, "/sys": 0o555}
FIELDS = "${Package}\t${Status}\t${Pre-Depends}, ${Depends}\t${Provides}\t${Conffiles}\x1e"


def missing():
    """Why no image can be made and run here; empty when it can be."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not sys.platform.startswith("linux") or os.getuid() != 0:
        return "making and running images in a test needs Linux and root"
    if not shutil.which("dpkg-query") or not Path(f"/usr/bin/python{here}").exists():
        return f"the base image is made of Debian's Python {here}, which is not on this machine"
    absent = [name for name in ("podman", "runc") if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}" if absent else ""


def installable():
    """Whether what `missing` names could have been installed here: then a test must not skip."""
    return missing().startswith("not installed") and shutil.which("apt-get") is not None


def packages():
    """The names of the Debian packages in the base image, and the digests of their conffiles."""
    asked = ["dpkg-query", "-W", f"-f={FIELDS}"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    needs, providers, conffiles = {}, {}, {}
    for record in said.split("\x1e"):
        if record.count("\t") < 4 or "ok installed" not in record:
            continue
        name, _, depends, provides, files = record.strip("\n").split("\t", 4)
        alternatives = [part.split("|") for part in depends.split(",") if part.strip()]
        needs[name] = [[re.split(r"[ (:]", a.strip())[0] for a in one] for one in alternatives]
        for part in filter(str.strip, provides.split(",")):
            providers.setdefault(re.split(r"[ (]", part.strip())[0], name)
        conffiles |= {x[0]: x[1] for x in map(str.split, files.splitlines()) if len(x) > 1}
    waiting, chosen = list(WANTED), set()
    while waiting:
        name = waiting.pop()
        name = name if name in needs else providers.get(name)
        if name and name not in chosen and name not in NOT_NEEDED:
            chosen.add(name)
            known = ([a for a in one if a in needs or a in providers] for one in needs[name])
            waiting += [one[0] for one in known if one]
    return sorted(chosen), conffiles


def owned(names, conffiles):
    """The paths of the files that `names` brought, by the folder they really lie in."""
    asked = ["dpkg-query", "-L", *names]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    for line in sorted(set(said.splitlines())):
        if (
            line == "/."
            or not line.startswith("/")
            or DROPPED.search(line + "/" * os.path.isdir(line))
        ):
            continue
        path = Path(os.path.realpath(os.path.dirname(line)), os.path.basename(line))
        plain = path.is_file() and not path.is_symlink() and str(path) in conffiles
        if plain and hashlib.md5(path.read_bytes()).hexdigest() != conffiles[str(path)]:
            continue  # edited on this machine
        if path.is_symlink() or path.exists():
            yield path


class Root:
    """A tar file of a root file system."""

    def __init__(self, file):
        self.tar, self.done = tarfile.TarFile(file, "w", format=tarfile.PAX_FORMAT), {"/"}

    def add(self, path, content=None, **facts):
        """Adds a folder, or a file of `content`, and the folders above it."""
        if path in self.done:
            return
        self.add(os.path.dirname(path), type=tarfile.DIRTYPE, mode=0o755)
        self.done.add(path)
        info = tarfile.TarInfo(path[1:])
        info.size = len(content or b"")
        for name, value in ({"mode": 0o644} | facts).items():
            setattr(info, name, value)
        self.tar.addfile(info, io.BytesIO(content) if content is not None else None)

    def copy(self, path):
        """Adds a file, link or folder of this machine."""
        if path.is_symlink():
            self.add(str(path), type=tarfile.SYMTYPE, linkname=os.readlink(path))
        elif path.is_dir():
            self.add(str(path), type=tarfile.DIRTYPE, mode=0o755)
        else:
            self.add(str(path), path.read_bytes(), mode=path.stat().st_mode & 0o7777)


def make_base(file):
    """Writes a root file system with Debian's Python into the tar `file`."""
    root = Root(file)
    for name in ("bin", "sbin", "lib", "lib64"):
        root.add(f"/usr/{name}", type=tarfile.DIRTYPE, mode=0o755)
        root.add(f"/{name}", type=tarfile.SYMTYPE, linkname=f"usr/{name}")
    for name in FOLDERS:
        root.add(name, type=tarfile.DIRTYPE, mode=MODES.get(name, 0o755))
    names, conffiles = packages()
    for path in owned(names, conffiles):
        if path.parts[1] in ("usr", "etc", "var", "opt"):
            root.copy(path)
    for name in ("passwd", "group"):
        root.add(f"/etc/{name}", Path(f"/usr/share/base-passwd/{name}.master").read_bytes())
    root.add("/etc/shadow", b"root:*:19000:0:99999:7:::\n", mode=0o640)
    root.add("/etc/gshadow", b"root:*::\n", mode=0o640)
    certificates = sorted(Path("/usr/share/ca-certificates/mozilla").glob("*.crt"))
    bundle = b"".join(path.read_bytes() for path in certificates)
    root.add("/etc/ssl/certs/ca-certificates.crt", bundle)
    root.add("/usr/bin/awk", type=tarfile.SYMTYPE, linkname="mawk")
    root.tar.close()


CONTAINERS = """[containers]
default_ulimits = ["nofile={nofile}:{nofile}", "nproc=30000:30000"]
netns = "host"
{more}
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/root"\nrunroot = "{0}/run"\n'


class Podman:
    """A podman whose images, containers and settings all lie in `folder`."""

    def __init__(self, folder, uv):
        self.folder = folder
        if memory() > 8 << 30:  # a disk takes minutes to forget so many small files
            command = ["mount", "-t", "tmpfs", "-o", "size=4g,mode=755", "containers", folder]
            subprocess.run(command, capture_output=True)
        limit = min(int(x) if (x := ulimit()).isdigit() else 1 << 20, 1 << 20)
        (folder / "uv").mkdir()
        (folder / "uv" / "uv.toml").write_text("system-certs = true\n")
        (folder / "tmp").mkdir()
        # While an image is built, the machine's certificates and uv are lent to it, not copied.
        lent = f'volumes = ["/etc/ssl/certs:/etc/ssl/certs:ro", "{folder}/uv:/etc/uv:ro", '
        lent += f'"{uv}:/usr/local/bin/uv:ro"]'
        (folder / "storage.conf").write_text(STORAGE.format(folder / "store"))
        for name, more in (("build", lent), ("run", "")):
            text = CONTAINERS.format(nofile=limit, more=more)
            (folder / f"{name}.conf").write_text(text)
        self.environment = {
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "build.conf"),
            "TMPDIR": str(folder / "tmp"),
        }

    def __call__(self, *arguments, check=True):
        """What podman prints with `arguments`."""
        environment = os.environ | self.environment
        environment["CONTAINERS_CONF"] = str(self.folder / "run.conf")
        command = ["podman", *map(str, arguments)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert not check or run.returncode == 0, f"podman {arguments}: {run.stderr}"
        return run.stdout.strip()

    def end(self):
        """Leaves nothing: no container, no image, no file."""
        self("rm", "--all", "--force", "--time", "0", check=False)
        for place in (self.folder / "store/root/overlay", self.folder):
            subprocess.run(["umount", place], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def memory():
    """Bytes of memory that are free for use."""
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(told["MemAvailable"].split()[0]) << 10


def ulimit():
    """The most files that a process of this user may open."""
    command = ["bash", "-c", "ulimit -Hn"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
