"""Whether another user of this machine may read a file, and the commands that let them."""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collector.errors import CollectorError


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that keeps the user from reading.

    Args:
        reason: what, in a sentence.
        command: takes it away.
    """

    reason: str
    command: str


def obstacles(file: Path, user: str) -> list[Obstacle]:
    """What keeps a user from reading a file; empty where nothing does.

    Access lists (ACL) beyond the mode are not looked at; `reason` names those that are there.

    Raises:
        CollectorError: there is no such user, or the way to the file cannot be seen by this one.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise CollectorError(f"there is no user {user} on this machine") from error
    try:
        return list(_obstacles(file.resolve(), account))
    except OSError as error:
        advice = ": ask as root" if isinstance(error, PermissionError) else ""
        raise CollectorError(f"{error.filename}: {error.strerror}{advice}") from error


def _obstacles(file: Path, account: pwd.struct_passwd) -> Iterator[Obstacle]:
    if account.pw_uid == 0:
        return
    steps = [_Step(path, path.stat()) for path in (*reversed(file.parents), file)]
    groups = set(os.getgrouplist(account.pw_name, account.pw_gid))
    for step in steps:
        if step.opens_to_members(account.pw_uid, groups):
            yield Obstacle(step.reason(account), f"sudo usermod -aG {step.group} {account.pw_name}")
            groups.add(step.status.st_gid)  # what is closed to members too, comes after
    for step in steps:
        if not step.is_open(account.pw_uid, groups):
            role = _role(step.status, account.pw_uid, groups)
            command = f"sudo chmod {role}+{step.wanted} {shlex.quote(str(step.path))}"
            yield Obstacle(step.reason(account), command)


@dataclass(frozen=True, slots=True)
class _Step:
    """A directory on the way, or the file at its end."""

    path: Path
    status: os.stat_result

    @property
    def wanted(self) -> str:
        return "x" if stat.S_ISDIR(self.status.st_mode) else "r"

    @property
    def group(self) -> str:
        try:
            return grp.getgrgid(self.status.st_gid).gr_name
        except KeyError:
            return str(self.status.st_gid)

    def is_open(self, uid: int, groups: set[int]) -> bool:
        return self._lets(_role(self.status, uid, groups))

    def opens_to_members(self, uid: int, groups: set[int]) -> bool:
        """Whether the user lacks nothing but its group, which is not root's."""
        is_shut = not self.is_open(uid, groups) and _role(self.status, uid, groups) == "o"
        return is_shut and self.status.st_gid != 0 and self._lets("g")

    def reason(self, account: pwd.struct_passwd) -> str:
        verb = "enter" if self.wanted == "x" else "read"
        owners = f"{_user(self.status.st_uid)}:{self.group}"
        mode = stat.filemode(self.status.st_mode)
        reason = f"{account.pw_name} may not {verb} {self.path} ({mode} {owners})"
        if _has_access_list(self.path):
            reason += f", unless its access list says so: getfacl {shlex.quote(str(self.path))}"
        return reason

    def _lets(self, role: str) -> bool:
        bit = {"r": 0o4, "x": 0o1}[self.wanted] << {"u": 6, "g": 3, "o": 0}[role]
        return bool(self.status.st_mode & bit)


def _role(status: os.stat_result, uid: int, groups: set[int]) -> str:
    """Which of the three parts of the mode counts for the user; the kernel looks at no other."""
    if uid == status.st_uid:
        return "u"
    return "g" if status.st_gid in groups else "o"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _has_access_list(path: Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:  # a file system without such attributes
        return False
