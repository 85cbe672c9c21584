/* A stand-in for libnvidia-ml.so.1: the functions that bench/nvml.py asks, under their real names
   and with their real signatures, for two devices of known figures. Device 1 is of a kind that has
   no energy counter and tells no throttle reasons. stand_in_* are for the tests.
   It is also the NVML of cuda_stand_in, whose devices 0 and 1 have these UUIDs. */

#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, IS_LOST = 15 };
enum { CLOCK_SM = 1, CLOCK_MEM = 2, TEMPERATURE_GPU = 0 };

typedef struct {
    const char *uuid, *name;
    unsigned int sm_mhz, memory_mhz, milliwatts, gpu_percent, celsius;
    unsigned long long used_bytes, reasons, millijoules;
    int counts_energy;
} Device;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;

static Device devices[2];
static int sessions, lost, questions;

__attribute__((constructor)) void stand_in_reset(void) {
    static const Device fresh[2] = {
        {"GPU-aaaaaaaa-0000-1111-2222-333333333333", "Stand-in A", 1410, 1215, 250500, 97, 61,
         3ULL << 30, 0x4 | 0x20, 5000000000ULL, 1},
        {"GPU-bbbbbbbb-0000-1111-2222-333333333333", "Stand-in B", 1005, 3004, 150000, 50, 45,
         1ULL << 29, 0, 0, 0},
    };
    memcpy(devices, fresh, sizeof devices);
    sessions = lost = questions = 0;
}

int stand_in_sessions(void) { return sessions; }
int stand_in_questions(void) { return questions; }
void stand_in_lose_devices(void) { lost = 1; }

static int ready(const Device *device) {
    questions++;
    if (!sessions) return UNINITIALIZED;
    if (device != &devices[0] && device != &devices[1]) return INVALID_ARGUMENT;
    return lost ? IS_LOST : SUCCESS;
}

static int put_text(const char *text, char *to, unsigned int size) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    if (flags) return INVALID_ARGUMENT;
    sessions++;
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!sessions) return UNINITIALIZED;
    sessions--;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned int size) {
    return sessions ? put_text("555.42.06", version, size) : UNINITIALIZED;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    if (!sessions) return UNINITIALIZED;
    for (int i = 0; i < 2; i++)
        if (!strcmp(uuid, devices[i].uuid)) {
            *device = &devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned int size) {
    int error = ready(device);
    return error ? error : put_text(device->name, name, size);
}

int nvmlDeviceGetClockInfo(Device *device, unsigned int type, unsigned int *mhz) {
    int error = ready(device);
    if (error) return error;
    if (type != CLOCK_SM && type != CLOCK_MEM) return INVALID_ARGUMENT;
    *mhz = type == CLOCK_SM ? device->sm_mhz : device->memory_mhz;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned int *milliwatts) {
    int error = ready(device);
    if (!error) *milliwatts = device->milliwatts;
    return error;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    int error = ready(device);
    if (!error) *rates = (Utilization){device->gpu_percent, 11};
    return error;
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    int error = ready(device);
    if (!error)
        *memory = (Memory){16ULL << 30, (16ULL << 30) - device->used_bytes, device->used_bytes};
    return error;
}

int nvmlDeviceGetTemperature(Device *device, unsigned int sensor, unsigned int *celsius) {
    int error = ready(device);
    if (error) return error;
    if (sensor != TEMPERATURE_GPU) return INVALID_ARGUMENT;
    *celsius = device->celsius;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    int error = ready(device);
    if (error) return error;
    if (!device->counts_energy) return NOT_SUPPORTED;
    *millijoules = device->millijoules;
    device->millijoules += 250; /* between one reading and the next */
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) {
    int error = ready(device);
    if (error) return error;
    if (!device->counts_energy) return NOT_SUPPORTED;
    *reasons = device->reasons;
    return SUCCESS;
}
