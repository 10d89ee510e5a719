"""What a process prints when it fails or dies: the level of lines that contain none themselves.

Three kinds of patterns, from certain to vague:

- a death: printed by abort(), the C and C++ libraries, a shell, the kernel, systemd or a sanitizer. It is a
  record of its own wherever it stands, except in text of a model or user (`quotes_text`);
- a failure of a device, as its driver or runtime prints it. The same holds for it;
- words such as `failed to`: they count only in lines that a program begins with its component.

Patterns of deaths and devices are anchored at the beginning of the line: a sentence that mentions one of
them is no alarm. Sources: the code of llama.cpp and its forks, glibc, libstdc++, libc++, bash, zsh, Linux and
systemd, and public bug reports; `tests/recordings/trouble/` has an example of each.
"""

import re

_CODE_LINE = (
    r"(?:[A-Za-z]:)?[^\s:()\"'`]{1,300}\.(?:c|cc|cpp|cxx|cu|cuh|h|hpp|hip|inl|m|mm|comp|metal|tcc)"
    r"(?::\d{1,7}|\(\d{1,7}\)): "
)
"""`FILE:LINE: `, as abort() and assertions print it. Compilers print a column too, or one of `_COMPILER`."""

_COMPILER = r"(?!(?:error|warning|note|fatal error): |In )"

_SIGNAL = (
    r"(?:segmentation fault|aborted|abort|killed|bus error|illegal (?:hardware )?instruction"
    r"|floating[ -]point exception|trace/breakpoint trap|bad system call)"
)
"""What shells call the signals that kill."""

_TRACE = (
    r"(?:\S{1,300}\((?:[^()\s]{0,400}(?:\([^()]{0,200}\)[^()\s]{0,100})?)?\+?0x[0-9a-f]+\) ?\[0x[0-9a-f]+\]$"
    r"|#\d+ +0x[0-9a-f]+ in |\d+ +\S{1,100} +0x[0-9a-f]{16} \S+ \+ \d+$)"
)
"""One line of a trace of calls, by glibc, gdb and macOS."""

_DEATH = re.compile(
    # ggml_abort(), GGML_ASSERT, and the assertions of the libraries
    rf"{_CODE_LINE}{_COMPILER}\S"
    r"|\S{1,300}: \S{1,300}:\d+: .{1,400}: Assertion [`'\u2018]"
    r"|Assertion failed: "
    r"|.{0,400}: Assertion '.{1,300}' failed\.?$"
    r"|ggml_assert|GGML_ASSERT: "
    # glibc
    r"|(?:double free or corruption|free\(\): |malloc\(\): |malloc_consolidate\(\): |realloc\(\): "
    r"|munmap_chunk\(\): |corrupted (?:size vs\. prev_size|double-linked list)"
    r"|break adjusted to free malloc"
    r"|malloc\.c:\d+: |\*\*\* (?:stack smashing|buffer overflow|bit out of range) |Fatal glibc error: "
    r"|\*\*\* Error in `|tcache_thread_shutdown\(\): |free_hook|unaligned tcache chunk)"
    # C++
    r"|(?:terminate called |pure virtual method called|libc\+\+abi(?:\.dylib)?: (?:terminating"
    r"|Pure virtual))"
    # shells: `start.sh: line 3: 4711 Killed   llama-server …`, `zsh: abort   …`, or the signal alone
    rf"|(?i:[^\s:]{{1,200}}: line \d+: +\d+ {_SIGNAL}\b)"
    rf"|(?i:(?:zsh: |\[\d+\] ?[+-]? +(?:\d+ )?)?{_SIGNAL}(?: +\(core dumped\))?(?:$| {{2,}}\S))"
    r"|fish: (?:Job \d+, )?.{1,300} terminated by signal SIG(?:SEGV|ABRT|KILL|BUS|ILL|FPE|TRAP)"
    # sanitizers, Go, Rust, llamafile, Windows
    r"|==\d+==ERROR: \w+Sanitizer|\S{1,300}:\d+:\d+: runtime error: "
    r"|panic: |fatal error: (?:all goroutines|unexpected signal|runtime: |concurrent |out of memory)"
    r"|SIG(?:SEGV|ABRT|BUS|ILL|FPE)\b|signal SIG|thread '.{1,100}' (?:\(\d+\) )?panicked at "
    r"|error: Uncaught SIG|Unhandled exception|Exception Code: |.{0,100}\b0xC0000005\b"
    rf"|{_TRACE}"
    # the kernel, with its time since boot or without
    r"|(?:\[ *\d+\.\d+\] )?(?:"
    r".{1,80} invoked oom-killer: |Out of memory: |oom-kill:|Memory cgroup out of memory: "
    r"|\S{1,80}\[\d+\]: segfault at |traps: \S{1,80}\[\d+\] (?:trap |general protection)"
    r"|\S{1,80}\[\d+\] general protection"
    r"|NVRM: (?:Xid|GPU .{1,80} has fallen)|nvidia-modeset: ERROR"
    r"|(?:\[drm(?::\S+)?\] )?(?:\*ERROR\* )?(?:amdgpu|i915|xe) \S{1,40}: .{0,200}"
    r"(?:ring \S+ timeout|GPU reset|GPU HANG|page fault|wedged|engine reset|device lost)"
    r"|.{0,100}\*ERROR\* ring \S+ timeout)"
    # systemd
    r"|(?:\S{1,200}\.(?:service|scope): )?(?:Main process exited, code=(?:killed|dumped)"
    r"(?!, status=(?:15/TERM|2/INT|1/HUP))|A process of this unit has been killed by the OOM killer"
    r"|Failed with result '(?!success))",
).match

_DEVICE = re.compile(
    r"(?:ggml_\w{1,60}: )?(?:cu(?:BLAS|DNN|Solver)|CUDA|ROCm|HIP|hip(?:BLAS|BLASLt)?|rocBLAS"
    r"|MUSA|muBLAS|SYCL|CANN"
    r"|Vulkan|OpenCL|WebGPU|NCCL|RCCL|oneDNN|oneMKL|ACL|Metal) error\b"
    r"|(?:ggml_\w{1,60}: )?.{0,200}\b(?:cu|hip|mu)(?:daMalloc|Malloc|saMalloc)\w* failed"
    r"|Memory access fault by (?:GPU|node)|Memory critical error by agent"
    r"|HW Exception by GPU|(?:GPU core|:\d:\w{1,40}\.cpp).{0,400}(?:abort|HSA_STATUS_ERROR"
    r"|failed|error|Exception)"
    r"|HSA_STATUS_ERROR|amdgpu: .{0,200}(?:failed|lost)|radv/amdgpu: .{0,100}(?:cancelled|lost|failed)"
    r"|Native API failed|Exception caught at file:|terminating due to|UR error|UR_RESULT_ERROR|PI_ERROR"
    r"|(?:ggml_vulkan: )?(?:vk::|VK_ERROR_|vulkan.{0,60}ErrorDevice)"
    r"|.{0,300}\bError(?:OutOf(?:Device|Host)Memory|DeviceLost)\b"
    r"|ggml_\w{1,60}: .{0,300}\b(?:failed|error:|out of memory|not enough)"
    r"|\w{1,80}: failed to allocate |alloc_tensor_range: failed"
    r"|(?:E\d{5}|EZ\d{4}|EI\d{4}|EE\d{4}): |\[ERROR\] \S{1,60}\(\d+,|aclnn\w+ failed"
    r"|.{0,120}\b(?:RPC server crashed|malformed response)"
    r"|.{0,200}error while loading shared libraries: |.{0,200}: symbol lookup error: |dyld\[\d+\]: "
    r"|Error: .{0,100}command buffer|.{0,100}kIOGPUCommandBufferCallbackError",
).match

_COMPONENT = re.compile(
    r"(?:[A-Za-z_~][\w~.:<>-]{0,60}(?:\(\))?|(?:srv|slot|que|res|cmn)  ?[\w ().:~<>-]{0,60}?): "
).match

_FAILURE = re.compile(
    r"\berror(?::| \w+ing\b| while\b| code\b)|\bfail(?:ed|ure)?(?: to |:|$)|\bfailed \w"
    r"|\bcould ?n[o']?t (?:bind|open|load|create|connect)"
    r"|\bunable to |\bout of memory\b|\bexiting due to .{0,40}\berror|\bno usable GPU"
    r"|\bunrecogni[sz]ed|\bcannot (?:bind|open|load|create)"
    r"|\b(?:address|port) already in use|^unknown argument|^invalid argument|\bis not a valid"
    r"|\bcorrupted or incomplete",
    re.IGNORECASE,
).search

_FATAL = re.compile(r"\bfatal(?: error)?:", re.IGNORECASE).search
_WARNING = re.compile(r"\bwarn(?:ing)?\b ?:|\bgot exception: |\bdeprecated\b", re.IGNORECASE).search
_EXITED = re.compile(r"srv .{1,40}: instance name=.{1,300} exited with status (?!0$)-?\d+$").match

_OPENER = re.compile(
    r"(?:^|[\s|])(?:add_text|unparsed [\w-]+ output|(?:chat[_ ])?template|example_format"
    r"|(?:formatted[_ ])?prompt"
    r"|input|output|generated(?: text)?|(?:parsed )?message|content|grammar|schema|text"
    r"|next token|stop(?:ping)? word"
    r"|(?<!done )(?:request|response)(?! line))s?[\"']? ?[:=]"
    r"(?! ?(?:GET|POST|PUT|DELETE|OPTIONS|HEAD|PATCH) )",
    re.IGNORECASE,
).search

_BEGINNING_CHARACTERS = 1000
"""Only the beginning of a line is searched."""

_QUOTED = re.compile(r"[\"'`{<\u2018\u201c]")


def death_level(text: str) -> str | None:
    """Return the level of a line that a process prints when it dies, or a device when it fails; else None."""
    if _DEATH(text):
        return "critical"
    return "error" if _DEVICE(text) else None


def is_trace(text: str) -> bool:
    """Return whether a line is one of a trace of calls."""
    return bool(_IS_TRACE(text))


_IS_TRACE = re.compile(_TRACE).match


def starts_with_failure(text: str) -> bool:
    """Return whether a line without a component begins with a word such as `Failed` or `cannot`."""
    return bool(_FAILURE_WORD(text))


_FAILURE_WORD = re.compile(
    r"(?:error|failed|fatal|unable|cannot|could ?n[o']?t|got exception)\b", re.IGNORECASE
).match


def word_level(text: str) -> str | None:
    """Return the level of a line of a program that says it in words, such as `main: failed to …`; else None.

    Words in quotation marks, braces or tags do not count: there a program quotes somebody else.
    """
    beginning = text[:_BEGINNING_CHARACTERS]
    lowered = beginning.lower()
    # Nearly all lines contain none of these. This is the fastest form of the check: `any` over a list takes
    # three times as long, one expression for all of them twenty times.
    if not (
        "err" in lowered
        or "fail" in lowered
        or "warn" in lowered
        or "fatal" in lowered
        or "unable" in lowered
        or "could" in lowered
        or "cannot" in lowered
        or "out of mem" in lowered
        or "exception" in lowered
        or "in use" in lowered
        or "unrecogni" in lowered
        or "no usable" in lowered
        or " arg" in lowered
        or "valid" in lowered
        or "corrupt" in lowered
        or "deprecated" in lowered
    ):
        return None
    if quoted := _QUOTED.search(beginning):
        beginning = beginning[: quoted.start()]
    if _WARNING(beginning):
        return "warn"
    if _FATAL(beginning):
        return "critical"
    return "error" if _FAILURE(beginning) else None


def raised_level(message: str) -> str | None:
    """Return the level of a message whose own level is too low, else None.

    A router prints as information that one of its children has failed.
    """
    return "error" if " exited with status " in message and _EXITED(message) else None


def has_component(text: str) -> bool:
    """Return whether a line begins with the name of a component: `srv  llama_server: …`, `print_info: …`."""
    return bool(_COMPONENT(text))


def is_known_component(text: str) -> bool:
    """Return whether a line begins with a component as llama.cpp names them, and not with any word."""
    return bool(_KNOWN_COMPONENT(text)) and not text.startswith(_NOT_KNOWN)


_NOT_KNOWN = ("malloc_consolidate(): ", "tcache_", "ggml_")
"""glibc, and ggml's backends, whose failures have forms of their own."""


_KNOWN_COMPONENT = re.compile(
    r"(?:(?:srv|slot|que|res|cmn)  ?[\w ().:~<>-]{0,60}?|main|init|build|load|print_info|system info"
    r"|[a-z~]\w{0,40}(?:_|::)[\w:~<>]{0,60}(?:\(\))?): "
).match


def quotes_text(message: str) -> bool:
    """Return whether text of a user or model may follow in the next lines.

    Example: `add_text: <|im_start|>user`, after which each line of the prompt is printed as it is.
    """
    beginning = message[:_OPENER_CHARACTERS]
    lowered = beginning.lower()
    if not (
        "prompt" in lowered
        or "template" in lowered
        or "put:" in lowered
        or "text:" in lowered
        or "message" in lowered
        or "content" in lowered
        or "grammar" in lowered
        or "schema" in lowered
        or "example" in lowered
        or "request" in lowered
        or "response" in lowered
        or "token:" in lowered
        or "word" in lowered
        or "generated" in lowered
    ):
        return False
    opener = _OPENER(beginning)
    if not opener:
        return False
    return not _CLOSED(message[opener.end() :].strip())


_OPENER_CHARACTERS = 300

_CLOSED = re.compile(r"\{[^%].*\}|\{\}|'[^']*'|\"(?:[^\"\\]|\\.)*\"|\[.*\]", re.DOTALL).fullmatch
