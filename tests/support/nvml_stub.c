/* A libnvidia-ml.so.1 that needs no GPU: it returns what the file "answers" in $NVML_STUB says, and appends
 * each call to the file "calls" beside it. nvml_stub.py writes the answers; they are read at each call, and of
 * two lines for the same function and GPU the later one applies. FUNCTION and GPU may be "*".
 *
 *   value FUNCTION GPU NUMBER...    what the function returns (text for names)
 *   error FUNCTION GPU CODE         the NVML code that it fails with
 *   hang  FUNCTION GPU FIFO         it returns once the pipe was opened for writing and closed
 *   module VERSION                  of the kernel module: nvmlInit fails unless this library has the same one
 *
 * Like the real library: nothing works outside a session, a handle is valid in its own session only, and a GPU
 * that was lost once stays so until the next session.
 *
 * With -DSTUB_OF_AN_OLD_DRIVER it has the functions of 2020 and before, and with -DSTUB_OF_THE_FIRST_DRIVER as
 * well those of 2012; what they return is said under their names of today.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef STUB_VERSION
#define STUB_VERSION 1
#endif

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { LIBRARY_AND_MODULE_DIFFER = 18, GPUS_AT_MOST = 64, NO_GPU = -1, TEXT_BYTES = 4096 };

static int sessions;
static uintptr_t session_key;
static char lost[GPUS_AT_MOST];

typedef struct {
    int error;
    char hang[TEXT_BYTES];
    char value[TEXT_BYTES];
} Answer;

static FILE *open_beside(const char *name, const char *mode) {
    char path[TEXT_BYTES];
    const char *directory = getenv("NVML_STUB");
    snprintf(path, sizeof path, "%s/%s", directory ? directory : ".", name);
    return fopen(path, mode);
}

static void record_call(const char *function, int gpu) {
    FILE *file = open_beside("calls", "a");
    if (!file) return;
    fprintf(file, "%s %d\n", function, gpu);
    fclose(file);
}

static int matches(const char *pattern, const char *text) {
    return !strcmp(pattern, "*") || !strcmp(pattern, text);
}

static void wait_for_release(const char *fifo) {
    char byte;
    int reader = open(fifo, O_RDONLY);
    if (reader < 0) return; /* released already */
    if (read(reader, &byte, 1) >= 0) close(reader);
}

static Answer find_answer(const char *function, int gpu) {
    Answer answer = {.error = NOT_SUPPORTED};
    char line[TEXT_BYTES], kind[16], pattern[80], gpu_pattern[16], number[16];
    FILE *file = open_beside("answers", "r");
    if (!file) return answer;
    snprintf(number, sizeof number, "%d", gpu);
    while (fgets(line, sizeof line, file)) {
        int rest = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%15s %79s %15s %n", kind, pattern, gpu_pattern, &rest) < 3) continue;
        if (!matches(pattern, function) || !matches(gpu_pattern, number)) continue;
        if (!strcmp(kind, "error")) answer.error = atoi(line + rest);
        if (!strcmp(kind, "hang")) strcpy(answer.hang, line + rest);
        if (!strcmp(kind, "value")) answer.error = SUCCESS, strcpy(answer.value, line + rest);
    }
    fclose(file);
    return answer;
}

static int module_version(void) {
    char line[TEXT_BYTES];
    int version = STUB_VERSION;
    FILE *file = open_beside("answers", "r");
    if (!file) return version;
    while (fgets(line, sizeof line, file)) sscanf(line, "module %d", &version);
    fclose(file);
    return version;
}

/* Records the call, hangs if it is to, and returns the code; the text of the answer is in `answer->value`. */
static int ask(const char *function, int gpu, Answer *answer) {
    record_call(function, gpu);
    *answer = find_answer(function, gpu);
    if (answer->hang[0]) wait_for_release(answer->hang);
    return answer->error;
}

static void *handle_of(int gpu) { return (void *)(session_key | (uintptr_t)gpu); }

static int ask_gpu(const char *function, void *handle, Answer *answer) {
    int gpu = (int)((uintptr_t)handle % GPUS_AT_MOST);
    if (!sessions) return UNINITIALIZED;
    if (handle != handle_of(gpu)) return INVALID_ARGUMENT;
    int error = ask(function, gpu, answer);
    if (error == GPU_IS_LOST) lost[gpu] = 1;
    return lost[gpu] ? GPU_IS_LOST : error;
}

static int start(void) {
    Answer answer;
    struct timespec now;
    int error = ask("nvmlInitWithFlags", NO_GPU, &answer);
    if (!error && module_version() != STUB_VERSION) error = LIBRARY_AND_MODULE_DIFFER;
    if (error || sessions++) return error;
    clock_gettime(CLOCK_MONOTONIC, &now);
    session_key = ((uintptr_t)now.tv_sec * 1000000000u + (uintptr_t)now.tv_nsec) * GPUS_AT_MOST;
    memset(lost, 0, sizeof lost);
    return SUCCESS;
}

#ifdef STUB_OF_THE_FIRST_DRIVER
int nvmlInit_v2(void) { return start(); }
#else
int nvmlInitWithFlags(unsigned flags) { return flags ? INVALID_ARGUMENT : start(); }
#endif

int nvmlShutdown(void) {
    Answer answer;
    if (!sessions) return UNINITIALIZED;
    int error = ask("nvmlShutdown", NO_GPU, &answer);
    if (!error) sessions--;
    return error;
}

int nvmlSystemGetDriverVersion(char *buffer, unsigned length) {
    Answer answer;
    if (!sessions) return UNINITIALIZED;
    int error = ask("nvmlSystemGetDriverVersion", NO_GPU, &answer);
    if (!error) snprintf(buffer, length, "%s", answer.value);
    return error;
}

const char *nvmlErrorString(int code) {
    static char text[40];
    snprintf(text, sizeof text, "stub error %d", code);
    return text;
}

#ifdef STUB_OF_THE_FIRST_DRIVER
#define nvmlDeviceGetCount_v2 nvmlDeviceGetCount
#define nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByIndex
#endif

int nvmlDeviceGetCount_v2(unsigned *count) {
    Answer answer;
    if (!sessions) return UNINITIALIZED;
    int error = ask("nvmlDeviceGetCount_v2", NO_GPU, &answer);
    if (!error) *count = (unsigned)atoi(answer.value);
    return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    Answer answer;
    if (index >= GPUS_AT_MOST) return INVALID_ARGUMENT;
    *handle = handle_of((int)index);
    return ask_gpu("nvmlDeviceGetHandleByIndex_v2", *handle, &answer);
}

static int text(const char *function, void *handle, char *buffer, unsigned length) {
    Answer answer;
    int error = ask_gpu(function, handle, &answer);
    if (!error) snprintf(buffer, length, "%s", answer.value);
    return error;
}

/* Up to four numbers, of 32 or of 64 bits. */
static int numbers(const char *function, void *handle, uint64_t *values) {
    Answer answer;
    int error = ask_gpu(function, handle, &answer);
    char *rest = answer.value;
    for (int i = 0; !error && i < 4; i++) values[i] = strtoull(rest, &rest, 10);
    return error;
}

static int number(const char *function, void *handle, unsigned *value) {
    uint64_t values[4];
    int error = numbers(function, handle, values);
    if (!error) *value = (unsigned)values[0];
    return error;
}

int nvmlDeviceGetName(void *handle, char *buffer, unsigned length) {
    return text("nvmlDeviceGetName", handle, buffer, length);
}

int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned length) {
    return text("nvmlDeviceGetUUID", handle, buffer, length);
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    uint64_t values[4];
    int error = numbers("nvmlDeviceGetUtilizationRates", handle, values);
    if (!error) rates[0] = (unsigned)values[0], rates[1] = (unsigned)values[1];
    return error;
}

typedef struct {
    unsigned long long total, free, used;
} Memory;

/* total, free, used; drivers before 510 count what is reserved as used */
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    uint64_t values[4];
    int error = numbers("nvmlDeviceGetMemoryInfo", handle, values);
    if (!error) *memory = (Memory){values[0], values[1], values[2]};
    return error;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *value) {
    return sensor ? INVALID_ARGUMENT : number("nvmlDeviceGetTemperature", handle, value);
}

int nvmlDeviceGetFanSpeed(void *handle, unsigned *value) {
    return number("nvmlDeviceGetFanSpeed", handle, value);
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *value) {
    return number("nvmlDeviceGetPowerUsage", handle, value);
}

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *value) {
    return number("nvmlDeviceGetEnforcedPowerLimit", handle, value);
}

/* four clocks: graphics, streaming multiprocessors, memory, video */
int nvmlDeviceGetClockInfo(void *handle, int clock, unsigned *value) {
    uint64_t values[4];
    int error = numbers("nvmlDeviceGetClockInfo", handle, values);
    if (!error) *value = (unsigned)values[clock];
    return error;
}

int nvmlDeviceGetPerformanceState(void *handle, unsigned *value) {
    return number("nvmlDeviceGetPerformanceState", handle, value);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} Pci;

typedef struct {
    unsigned pid;
    unsigned long long used;
#ifndef STUB_OF_THE_FIRST_DRIVER
    unsigned gpu_instance, compute_instance;
#endif
} Process;

/* PID:BYTES PID:BYTES ... */
static int processes(const char *function, void *handle, unsigned *count, Process *list) {
    Answer answer;
    unsigned found = 0, capacity = *count;
    int error = ask_gpu(function, handle, &answer);
    if (error) return error;
    for (char *word = strtok(answer.value, " "); word; word = strtok(NULL, " "), found++) {
        char *end;
        unsigned pid = (unsigned)strtoul(word, &end, 10);
        if (!list || found >= capacity) continue;
        list[found].pid = pid;
        list[found].used = strtoull(end + 1, NULL, 10);
#ifndef STUB_OF_THE_FIRST_DRIVER
        list[found].gpu_instance = found;
        list[found].compute_instance = 0;
#endif
    }
    *count = found;
    return found > capacity ? INSUFFICIENT_SIZE : SUCCESS;
}

#ifndef STUB_OF_AN_OLD_DRIVER /* functions that drivers of 2020 and before do not have */

int nvmlDeviceGetPciInfo_v3(void *handle, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    return text("nvmlDeviceGetPciInfo_v3", handle, pci->bus_id, sizeof pci->bus_id);
}

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} Memory2;

int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *memory) {
    uint64_t values[4];
    int error = numbers("nvmlDeviceGetMemoryInfo_v2", handle, values);
    if (memory->version != 0x02000028) return INVALID_ARGUMENT;
    if (!error) *memory = (Memory2){memory->version, values[0], values[1], values[2], values[3]};
    return error;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *value) {
    uint64_t values[4];
    int error = numbers("nvmlDeviceGetTotalEnergyConsumption", handle, values);
    if (!error) *value = values[0];
    return error;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *value) {
    uint64_t values[4];
    int error = numbers("nvmlDeviceGetCurrentClocksEventReasons", handle, values);
    if (!error) *value = values[0];
    return error;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *list) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", handle, count, list);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, Process *list) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", handle, count, list);
}

#else /* what these drivers have instead: the same functions under older names, with shorter structures */

int nvmlDeviceGetPciInfo_v2(void *handle, Pci *pci) {
    char full[32];
    int error = text("nvmlDeviceGetPciInfo_v3", handle, full, sizeof full);
    memset(pci, 0, sizeof *pci - sizeof pci->bus_id);
    if (!error) snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "%.12s", full + 4);
    return error;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *value) {
    uint64_t values[4];
    int error = numbers("nvmlDeviceGetCurrentClocksEventReasons", handle, values);
    if (!error) *value = values[0];
    return error;
}

#ifdef STUB_OF_THE_FIRST_DRIVER
#define COMPUTE_PROCESSES nvmlDeviceGetComputeRunningProcesses
#define GRAPHICS_PROCESSES nvmlDeviceGetGraphicsRunningProcesses
#else
#define COMPUTE_PROCESSES nvmlDeviceGetComputeRunningProcesses_v2
#define GRAPHICS_PROCESSES nvmlDeviceGetGraphicsRunningProcesses_v2
#endif

int COMPUTE_PROCESSES(void *handle, unsigned *count, Process *list) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", handle, count, list);
}

int GRAPHICS_PROCESSES(void *handle, unsigned *count, Process *list) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", handle, count, list);
}

#endif
