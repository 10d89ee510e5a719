"""Whether another user of this machine may read a file, and the commands that allow it."""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from collector.errors import CollectorError


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One missing permission that a user needs to read a file.

    Args:
        reason: what is missing, as a sentence.
        command: the command that grants it.
    """

    reason: str
    command: str


def find_obstacles(file: Path, user: str) -> list[Obstacle]:
    """Return what prevents a user from reading a file; an empty list if nothing does.

    Only owners, groups and modes are checked. Where a path also has an access list (ACL), `reason` says so.

    Raises:
        CollectorError: there is no such user, or this user may not see a directory on the path.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError as error:
        raise CollectorError(f"there is no user {user} on this machine") from error
    if account.pw_uid == 0:
        return []
    try:
        resolved = file.resolve()
        nodes = [_Node(path, path.stat()) for path in (*reversed(resolved.parents), resolved)]
        return list(_obstacles(nodes, account))
    except OSError as error:
        advice = ": ask as root" if isinstance(error, PermissionError) else ""
        raise CollectorError(f"{error.filename}: {error.strerror}{advice}") from error


@dataclass(frozen=True, slots=True)
class _Node:
    """The file, or a directory on its path."""

    path: Path
    status: os.stat_result

    @property
    def permission(self) -> str:
        """What is needed: `x` to enter a directory, `r` to read the file."""
        return "x" if stat.S_ISDIR(self.status.st_mode) else "r"

    @property
    def group(self) -> str:
        try:
            return grp.getgrgid(self.status.st_gid).gr_name
        except KeyError:
            return str(self.status.st_gid)

    def role(self, uid: int, groups: set[int]) -> str:
        """Return which part of the mode applies to a user (`u`, `g` or `o`): the kernel checks no other."""
        if uid == self.status.st_uid:
            return "u"
        return "g" if self.status.st_gid in groups else "o"

    def is_granted(self, role: str) -> bool:
        """Return whether the mode grants the needed permission to `u`, `g` or `o`."""
        bit = {"r": 0o4, "x": 0o1}[self.permission] << {"u": 6, "g": 3, "o": 0}[role]
        return bool(self.status.st_mode & bit)

    def reason(self, account: pwd.struct_passwd) -> str:
        """Return a sentence that says what the user may not do."""
        try:
            owner = pwd.getpwuid(self.status.st_uid).pw_name
        except KeyError:
            owner = str(self.status.st_uid)
        verb = "enter" if self.permission == "x" else "read"
        mode = stat.filemode(self.status.st_mode)
        reason = f"{account.pw_name} may not {verb} {self.path} ({mode} {owner}:{self.group})"
        with suppress(OSError):  # a file system without extended attributes
            if "system.posix_acl_access" in os.listxattr(self.path):
                reason += f", unless its access list allows it: getfacl {shlex.quote(str(self.path))}"
        return reason


def _obstacles(nodes: list[_Node], account: pwd.struct_passwd) -> Iterator[Obstacle]:
    """Yield first the groups that the user must join, then the modes that must change even for a member.

    For example, a directory 0750 of root:data can be entered by members of `data`: joining that group is
    enough. A directory 0700 must change its mode. Joining the group root is never proposed.
    """
    uid, name = account.pw_uid, account.pw_name
    groups = set(os.getgrouplist(name, account.pw_gid))
    for node in nodes:
        role = node.role(uid, groups)
        if not node.is_granted(role) and role == "o" and node.status.st_gid != 0 and node.is_granted("g"):
            yield Obstacle(node.reason(account), f"sudo usermod -aG {node.group} {name}")
            groups.add(node.status.st_gid)
    for node in nodes:
        role = node.role(uid, groups)
        if not node.is_granted(role):
            command = f"sudo chmod {role}+{node.permission} {shlex.quote(str(node.path))}"
            yield Obstacle(node.reason(account), command)
