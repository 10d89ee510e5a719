"""Failures of servers as they were printed: formats as reported, values made up.

Each entry: who printed it and where it was reported, the lines, and the record that must be found: its level
(`error` stands for error or critical), a part of its text, and its source, llama-server if none is given.
"""

from typing import NamedTuple


class Failure(NamedTuple):
    """One failure.

    Args:
        report: where it was reported, or which build printed it.
        lines: a part of the log.
        level: `critical`, or `error` for either.
        text: part of the message of the row.
        source: its `logs.source`.
    """

    report: str
    lines: str
    level: str
    text: str
    source: str = "llama-server"


_SPAWN = "1.00.000.000 I srv          load: spawning server instance with name=qwen on port 49457\n"
_IDLE = "0.55.100.000 I srv  update_slots: all slots are idle\n"
_PLAIN_IDLE = "srv  update_slots: all slots are idle\n"

FAILURES = (
    # CUDA
    Failure(
        "llama.cpp#24324",
        _SPAWN + "[49457] 0.55.1" + "00.000 I slot update_slots: id  0 | task 12 | prompt done\n"
        "[49457] /home/u/llama.cpp/ggml/src/ggml-cuda/fattn.cu:579: fatal error\n"
        "[49457] /home/u/bin/libggml-base.so.0(ggml_abort+0x11e) [0x7fbfdb553bce]",
        "critical", "fattn.cu:579", "qwen",
    ),
    Failure("llama.cpp#15256", "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 6144.00 MiB on device 0: cudaMalloc failed: out of memory", "error", "cudaMalloc"),
    Failure("llama.cpp#7293", "CUDA error 2 at ggml-cuda.cu:1234: out of memory\ncurrent device: 0", "error", "CUDA error 2"),
    Failure("CUDA, build of today", _IDLE + "0.56.000.000 E CUDA error: an illegal memory access was encountered\n/app/ggml/src/ggml-cuda/ggml-cuda.cu:97: CUDA error", "critical", "ggml-cuda.cu:97"),
    Failure("CUDA of 2024", _PLAIN_IDLE + 'CUDA error: out of memory\n  current device: 0, in function alloc at ggml-cuda.cu:300\n  cuMemSetAccess(...)\nggml-cuda.cu:100: !"CUDA error"', "critical", "ggml-cuda.cu:100"),
    Failure("cuBLAS", "cuBLAS error 15 at /build/ggml-cuda.cu:7586: the requested functionality is not supported", "error", "cuBLAS"),
    Failure("ggml_cuda_init", "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", "error", "failed to initialize CUDA"),
    Failure("CUDA graph", "ggml_cuda_compute_forward: MUL_MAT failed\nCUDA error: unspecified launch failure", "error", "MUL_MAT failed"),
    # ROCm
    Failure("llama.cpp#12817", "Memory access fault by GPU node-1 (Agent handle: 0x5) on address 0x7f. Reason: Page not present or supervisor privilege.\nAborted (core dumped)", "error", "Memory access fault"),
    Failure("ROCm queue", ":0:rocdevice.cpp            :2984: 12345 us: [pid:4711 tid:0x7f] Callback: Queue 0x7f aborting with error : HSA_STATUS_ERROR_OUT_OF_RESOURCES: no resources", "error", "HSA_STATUS_ERROR"),
    Failure("ROCm of 2025", _IDLE + "ROCm error: out of memory\n  current device: 1, in function alloc at /x/ggml-cuda.cu:450\n/x/ggml-cuda.cu:83: ROCm error", "critical", "ggml-cuda.cu:83"),
    Failure("rocBLAS", "rocBLAS error: Cannot read /opt/rocm/lib/rocblas/library/TensileLibrary.dat: No such file or directory for GPU arch : gfx1103", "error", "rocBLAS"),
    Failure("HIP", "HIP error: invalid device function", "error", "invalid device function"),
    Failure("ROCm hang", "HW Exception by GPU node-1 (Agent handle: 0x6) reason :GPU Hang", "error", "HW Exception"),
    # Vulkan
    Failure("Vulkan memory", "ggml_vulkan: Device memory allocation of size 118497280 failed.\nggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory", "error", "allocation of size"),
    Failure("ollama#9260", "terminate called after throwing an instance of 'vk::DeviceLostError'\n  what():  vk::Queue::submit: ErrorDeviceLost", "critical", "DeviceLostError"),
    Failure("radv", "radv/amdgpu: The CS has been cancelled because the context is lost. This context is guilty of a hard recovery.", "error", "CS has been cancelled"),
    Failure("Vulkan fence", _IDLE + "/app/ggml/src/ggml-vulkan/ggml-vulkan.cpp:12345: GGML_ASSERT(buf != nullptr) failed", "critical", "GGML_ASSERT(buf"),
    Failure("Vulkan, no device", "ggml_vulkan: Error: No devices found.\nterminate called after throwing an instance of 'std::runtime_error'", "critical", "terminate called"),
    # SYCL
    Failure("llama.cpp#12238", "Native API failed. Native API returns: -2 (PI_ERROR_DEVICE_NOT_AVAILABLE) -2\nException caught at file:/x/ggml-sycl.cpp, line:3187", "error", "Native API failed"),
    Failure("SYCL of 2025", "SYCL error: CHECK_TRY_ERROR((stream)->memcpy(a, b, c)): Exception caught in this line of code.\n  in function x at /x/ggml-sycl.cpp:300\n/x/ggml-sycl/common.hpp:115: SYCL error", "critical", "common.hpp:115"),
    Failure("Level Zero", "terminate called after throwing an instance of 'sycl::_V1::exception'\n  what():  level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)", "critical", "sycl::_V1"),
    Failure("oneAPI", "UR error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", "error", "UR_RESULT_ERROR"),
    # Metal
    Failure("Metal", "ggml_metal_graph_compute: command buffer 0 failed with status 5\nerror: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)", "error", "command buffer 0"),
    Failure("Metal of 2025", "ggml_metal_synchronize: error: command buffer 0 failed with status 5", "error", "command buffer 0 failed"),
    Failure("Metal library", "ggml_metal_init: error: load pipeline error: Error Domain=CompilerError Code=2", "error", "load pipeline error"),
    Failure("macOS assertion", "Assertion failed: (n_tokens > 0), function decode, file llama-context.cpp, line 1200.", "critical", "Assertion failed"),
    Failure("macOS trace", _PLAIN_IDLE + "0   libggml-base.dylib                  0x0000000104a3c5f0 ggml_print_backtrace + 276\n1   libggml-base.dylib                  0x0000000104a3c7d8 ggml_abort + 156", "critical", "ggml_print_backtrace"),
    Failure("macOS loader", "dyld[4711]: Library not loaded: @rpath/libllama.dylib", "error", "Library not loaded"),
    # CANN, RPC, OpenCL, MUSA
    Failure("CANN", "CANN error: EL0004: [PID: 4711] Failed to allocate memory.\n  current device: 0, in function alloc at ggml-cann.cpp:180\n/x/ggml-cann.cpp:70: CANN error", "critical", "ggml-cann.cpp:70"),
    Failure("CANN code", "EZ9903: [PID: 4711] 2025-05-01-10:00:00.123.456 rtKernelLaunch failed", "error", "EZ9903"),
    Failure("llama.cpp#11929", _IDLE + "/x/ggml/src/ggml-rpc/ggml-rpc.cpp:1000: Remote RPC server crashed or returned malformed response", "critical", "RPC server crashed"),
    Failure("RPC", "Failed to connect to 192.0.2.7:50052", "error", "Failed to connect"),
    Failure("OpenCL", "ggml_opencl: clCreateBuffer error -61 failed to allocate 512 MiB", "error", "clCreateBuffer"),
    Failure("MUSA", "MUSA error: out of memory", "error", "MUSA error"),
    # the C library, C++ libraries
    Failure("glibc", "double free or corruption (out)", "critical", "double free"),
    Failure("glibc heap", _IDLE + "malloc(): unaligned tcache chunk detected", "critical", "unaligned tcache"),
    Failure("glibc heap of 2024", "free(): invalid pointer\nAborted (core dumped)", "critical", "invalid pointer"),
    Failure("glibc size", "corrupted size vs. prev_size while consolidating", "critical", "prev_size"),
    Failure("glibc stack", "*** stack smashing detected ***: terminated", "critical", "stack smashing"),
    Failure("glibc assert", "llama-server: /x/common/sampling.cpp:120: void f(int): Assertion `n > 0' failed.", "critical", "Assertion `n > 0'"),
    Failure(
        "llama.cpp#23889",
        _SPAWN + "[49457] 0.05.100.000 I slot update_slots: id  0 | task 12 | n_tokens = 100\n"
        "[49457] /usr/include/c++/16.1.1/bits/stl_vector.h:1253: std::vector<_Tp, _Alloc>::reference "
        "std::vector<_Tp, _Alloc>::operator[](size_type) [with _Tp = int]: Assertion '__n < this->size()' failed.",
        "critical", "__n < this->size()", "qwen",
    ),
    Failure("llama.cpp#9195", "llama-server [falcon-7b:2048:10]: terminate called after throwing an instance of 'nlohmann::detail::type_error'", "critical", "terminate called"),
    Failure("llamafile#785", '{"function":"update_slots","level":"INFO","line":1705,"msg":"slot context shift","timestamp":1754540354}\nlibc++abi: terminating due to uncaught exception of type std::length_error: vector', "critical", "libc++abi"),
    Failure("libc++", "/usr/lib/llvm-18/include/c++/v1/vector:1400: assertion __n < size() failed: vector[] index out of bounds\n/x/llama.cpp:1: GGML_ABORT", "critical", "GGML_ABORT"),
    Failure("C++", "pure virtual method called\nterminate called without an active exception", "critical", "terminate called"),
    Failure("llama.cpp#17060", _PLAIN_IDLE + "libggml-base.so(+0x183cb)[0x72edb99cd3cb]\nlibggml-base.so(ggml_print_backtrace+0x21f)[0x72edb99cd82f]", "critical", "ggml_print_backtrace"),
    Failure("AddressSanitizer", "==4711==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x602000000014", "critical", "AddressSanitizer"),
    Failure("loader", "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such file or directory", "error", "libcudart"),
    Failure("symbol", "/app/llama-server: symbol lookup error: /app/libllama.so: undefined symbol: ggml_backend_reg_count", "error", "undefined symbol"),
    # shells
    Failure("bash", "/usr/local/bin/start.sh: line 1: 27019 Segmentation fault      rpc-server 0.0.0.0 50052", "critical", "Segmentation fault"),
    Failure("bash, killed", "start.sh: line 3: 13990 Killed                  llama-server --model a.gguf --port 18111", "critical", "Killed"),
    Failure("bash, aborted", _IDLE + "./run.sh: line 12:  4711 Aborted                 (core dumped) ./llama-server -m a.gguf", "critical", "Aborted"),
    Failure("a signal alone", "Illegal instruction (core dumped)", "critical", "Illegal instruction"),
    Failure("zsh", "zsh: segmentation fault  ./llama-server -m a.gguf", "critical", "zsh:"),
    Failure("fish", "fish: Job 1, './llama-server -m a.gguf' terminated by signal SIGSEGV (Address boundary error)", "critical", "SIGSEGV"),
    # the kernel and systemd
    Failure("the kernel, OOM", "Jun  1 10:00:00 host kernel: [12345.678901] llama-server invoked oom-killer: gfp_mask=0x1100dca, order=0", "critical", "oom-killer", "kernel"),
    Failure("the kernel, killed", "Jun  1 10:00:01 host kernel: Out of memory: Killed process 4711 (llama-server) total-vm:127921280kB", "critical", "Killed process", "kernel"),
    Failure("the kernel, segfault", "Jun  1 10:00:02 host kernel: [12350.000000] llama-server[4712]: segfault at 0 ip 00007f12 sp 00007ffd error 4 in libggml-cpu.so[7f1200000000+1000]", "critical", "segfault", "kernel"),
    Failure("NVRM", "Jun  1 10:00:03 host kernel: NVRM: Xid (PCI:0000:01:00): 79, pid=4712, name=llama-server, GPU has fallen off the bus.", "critical", "Xid", "kernel"),
    Failure("amdgpu", "2026-05-01T10:00:03+0000 host kernel: amdgpu 0000:03:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=12, emitted seq=14", "critical", "ring gfx", "kernel"),
    Failure("i915", "Jun  1 10:00:03 host kernel: i915 0000:00:02.0: [drm] GPU HANG: ecode 12:1:85dffffb, in llama-server [4711]", "critical", "GPU HANG", "kernel"),
    Failure("systemd", "2026-05-01T10:00:02+0000 host systemd[1]: llama.service: Main process exited, code=dumped, status=11/SEGV", "critical", "status=11/SEGV", "systemd"),
    Failure("systemd, OOM", "Jun  1 10:00:04 host systemd[1]: llama.service: Failed with result 'oom-kill'.", "critical", "oom-kill", "systemd"),
    # llama-server's own words, from 2024 to today
    Failure("build of 2023", '{"timestamp":1698069462,"level":"ERROR","function":"load_model","line":291,"message":"unable to load model","model":"/m/a.gguf"}', "error", "unable to load model"),
    Failure("build of 2024", '{"tid":"1","timestamp":1724599958,"level":"ERR","function":"load_model","line":209,"msg":"unable to load model"}', "error", "unable to load model"),
    Failure("b5036", "llama_model_load: error loading model: missing tensor 'token_embd.weight'\nllama_model_load_from_file_impl: failed to load model", "error", "missing tensor"),
    Failure("b5036, port", "main: error: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080", "error", "bind HTTP"),
    Failure("b7710", "srv    llama_server: exiting due to model loading error", "error", "exiting due to"),
    Failure("arguments", 'error while handling argument "-c": stoi', "error", "handling argument"),
    Failure("arguments of today", "error: invalid argument: --no-such-option", "error", "no-such-option"),
    Failure("router", _SPAWN + "1.20.200.000 I srv    operator(): instance name=qwen exited with status 134", "error", "status 134"),
    Failure("--no-log-timestamps", "E srv  llama_server: exiting due to model loading error", "error", "exiting due to"),
    Failure("--log-jsonl", '{"type":"log","time":1000295,"level":"error","msg":"srv  llama_server: exiting due to model loading error\\n"}', "error", "exiting due to"),
    Failure("docker compose", "llama-1  | 15.16.524.599 E srv  operator(): slot busy", "error", "slot busy"),
    Failure("Kubernetes", "2026-05-01T10:00:00.123456789Z stderr F terminate called after throwing an instance of 'std::bad_alloc'", "critical", "bad_alloc"),
    # forks and programs around the server
    Failure("ik_llama.cpp#257", ' ERR [              load_model] unable to load model | tid="124968309209152" timestamp=1741937500 model="/models/a.gguf"', "error", "unable to load model"),
    Failure("llama-swap#635", "[ERROR] <qwen-9b> health check timed out after 120s", "error", "timed out"),
    Failure("ollama#9685", 'time=2025-03-12T12:14:22.015Z level=ERROR source=sched.go:456 msg="error loading llama server" error="llama runner process has terminated: signal: killed"', "error", "signal: killed"),
    Failure("ollama#8447", "panic: unable to load model: /models/blobs/sha256-x\ngoroutine 7 [running]:", "critical", "panic"),
    Failure("ollama, access", '[GIN] 2025/03/12 - 12:14:22 | 500 |         2m48s |       127.0.0.1 | POST     "/api/generate"', "error", "/api/generate"),
    Failure("LM Studio", "[2026-05-01 10:00:00][ERROR] Failed to load the model: exit code 6", "error", "exit code 6"),
    Failure("LocalAI", "10:00AM ERR failed to load model: rpc error: code = Unavailable desc = error reading from server: EOF", "error", "failed to load model"),
    Failure("Python", "2026-05-01 10:00:00,123 - ERROR - backend process exited with code 139", "error", "code 139"),
    # further reports, each with a form of its own
    Failure("llama.cpp#27749", "53.26.801.941 E CUDA error: an illegal memory access was encountered\n53.26.801.943 E   current device: 0, in function ggml_backend_cuda_synchronize at /x/ggml-cuda.cu:3000", "error", "illegal memory access"),
    Failure("ik_llama.cpp#747", 'INFO [ main] slots ready | tid="1" timestamp=1756700000 n=1\nCUDA error: an illegal memory access was encountered\n  current device: 0, in function f at /x/ggml-cuda.cu:3000\n/x/ggml-cuda.cu:116: CUDA error', "critical", "ggml-cuda.cu:116"),
    Failure("llama.cpp#13359", "slot update_slots: id  0 | task 5 | new prompt, n_ctx_slot = 4096, n_keep = 0, n_prompt_tokens = 9\nD:\\a\\ggml\\src\\ggml.c:1554: GGML_ASSERT(view_src == NULL || data_size == 0) failed", "critical", "ggml.c:1554"),
    Failure("llama.cpp#8117", "CUDA error: invalid argument\n  current device: 0, in function ggml_cuda_op at /x/ggml-cuda.cu:1", "error", "invalid argument"),
    Failure("turboquant#72", "slot update_slots: id  2 | task 10391 | prompt processing progress, n_tokens = 5\nCUDA error: out of memory\n  current device: 0, in function alloc at /x/ggml-cuda.cu:9\nAborted (core dumped)", "error", "CUDA error: out of memory"),
    Failure("llama.cpp#6527", "compute_imatrix: tokenization took 171 ms\nGGML_ASSERT: llama.cpp/ggml-cuda/argsort.cu:48: (ncols & (ncols - 1)) == 0\n[New LWP 46883]", "critical", "argsort.cu:48"),
    Failure("llama.cpp#14506", "srv  update_slots: all slots are idle\nllama-server: /x/src/llama-context.cpp:990: int llama_context::decode(const llama_batch &): Assertion `status == LLAMA_MEMORY_STATUS_SUCCESS' failed.", "critical", "Assertion"),
    Failure("llama.cpp#13329", "slot update_slots: id  0 | task 852 | prompt done, n_past = 319, n_tokens = 307\nllama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu:2073: GGML_ASSERT(!ggml_cuda_should_use_mmq(src0->type, cc, ne11)) failed\nptrace: Operation not permitted.\nNo stack.\nAborted", "critical", "ggml-cuda.cu:2073"),
    Failure("llama.cpp#13248", "srv  log_server_r: request: GET / 127.0.0.1 200\nBatch offset=0x0 len=0x0 on queue 0 (aperture: 373.2Mb, 0.0Mb VRAM only)\n   BO: addr=0xff size= 8KB\nterminate called after throwing an instance of 'vk::DeviceLostError'\n  what():  vk::Queue::submit: ErrorDeviceLost", "critical", "DeviceLostError"),
    Failure("llama.cpp#25664", "3.38.895.148 D set_embeddings: value = 0\nradv/amdgpu: The CS has been cancelled because the context is lost. This context is innocent.\n3.45.098.561 E srv  update_slots: decode() failed: vk::Queue::submit: ErrorDeviceLost", "error", "context is lost"),
    Failure("ollama#9330", "Feb 26 10:05:54 host ollama[1499630]: panic: runtime error: invalid memory address or nil pointer dereference\nFeb 26 10:05:54 host ollama[1499630]: goroutine 1 [running]:", "critical", "nil pointer"),
    Failure("ollama#1703", "2023/12/24 23:48:35 llama.go:459: error starting llama runner: llama runner process has terminated", "error", "error starting"),
    Failure("ollama#11418", '{"level":50,"time":1752516972565,"pid":10104,"hostname":"h","msg":"llama runner terminated"}', "error", "runner terminated"),
    Failure("ollama-intel-arc#23", 'time=2025-07-24T22:06:13.920+08:00 level=INFO source=runner.go:851 msg="starting go runner"\nSYCL CPU RT Warning: Unknown host CPU.\nterminate called after throwing an instance of \'sycl::_V1::exception\'', "critical", "sycl::_V1"),
    Failure("llama-swap#155", '[INFO] Request 10.0.1.135 "POST /x HTTP/1.1" 502 41 "axios" 293ms\n[DEBUG] <qwen> cmd.Wait() returned error: signal: aborted (core dumped)', "critical", "signal: aborted"),
    Failure("llama-swap#92", "unable to start process: health check failed after 15s", "error", "health check failed"),
)  # fmt: skip
