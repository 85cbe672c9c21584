/* A stand-in for libnvidia-ml.so.1: the functions that bench/nvml.py asks, under their real names
   and with their real signatures, for devices of known figures: A; B, of a kind that has no energy
   counter and tells no throttle reasons; C, a MIG slice that answers with its board's energy and
   power; D, a board in slices. stand_in_* are for the tests.
   It is also the NVML of cuda_stand_in, whose devices 0 and 1 have these UUIDs. */

#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, IS_LOST = 15 };
enum { CLOCK_SM = 1, CLOCK_MEM = 2, TEMPERATURE_GPU = 0 };
enum { WITHOUT_MIG, MIG_OFF, MIG_ON, SLICE };
enum { DEVICES = 4, REFUSALS = 16 };

typedef struct {
    const char *uuid, *name;
    unsigned int sm_mhz, memory_mhz, milliwatts, gpu_percent, celsius;
    unsigned long long used_bytes, reasons, millijoules;
    int counts_energy, mig;
} Device;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;

static Device devices[DEVICES];
static struct { char function[64]; int error; } refusals[REFUSALS];
static int sessions, lost, questions;

__attribute__((constructor)) void stand_in_reset(void) {
    static const Device fresh[DEVICES] = {
        {"GPU-aaaaaaaa-0000-1111-2222-333333333333", "Stand-in A", 1410, 1215, 250500, 97, 61,
         3ULL << 30, 0x4 | 0x20, 5000000000ULL, 1, MIG_OFF},
        {"GPU-bbbbbbbb-0000-1111-2222-333333333333", "Stand-in B", 1005, 3004, 150000, 50, 45,
         1ULL << 29, 0, 0, 0, WITHOUT_MIG},
        {"MIG-cccccccc-0000-1111-2222-333333333333", "Stand-in D MIG 1g.5gb", 1200, 1215, 300000,
         0, 50, 1ULL << 30, 0x1, 7000000000ULL, 1, SLICE},
        {"GPU-dddddddd-0000-1111-2222-333333333333", "Stand-in D", 1200, 1215, 300000, 80, 50,
         9ULL << 30, 0x1, 7000000000ULL, 1, MIG_ON},
    };
    memcpy(devices, fresh, sizeof devices);
    memset(refusals, 0, sizeof refusals);
    sessions = lost = questions = 0;
}

/* From now on the function gives this error; of at most REFUSALS functions. */
void stand_in_refuse(const char *function, int error) {
    for (int i = 0; i < REFUSALS; i++)
        if (!refusals[i].error) {
            snprintf(refusals[i].function, sizeof refusals[i].function, "%s", function);
            refusals[i].error = error;
            return;
        }
}

static int refusal(const char *function) {
    for (int i = 0; i < REFUSALS; i++)
        if (!strcmp(refusals[i].function, function)) return refusals[i].error;
    return SUCCESS;
}

/* A's figures become what drivers tell of values that they do not know. */
void stand_in_forget(void) {
    Device *a = &devices[0];
    a->sm_mhz = a->memory_mhz = a->milliwatts = a->gpu_percent = a->celsius = ~0U;
    a->used_bytes = a->reasons = a->millijoules = ~0ULL;
}

/* A's counter starts from nothing, as after a reset of the device. */
void stand_in_turn_back(void) { devices[0].millijoules = 0; }

/* A's name is no text. */
void stand_in_misname(void) { devices[0].name = "\xff\xfe"; }

int stand_in_sessions(void) { return sessions; }
int stand_in_questions(void) { return questions; }
void stand_in_lose_devices(void) { lost = 1; }

static int ready(const char *function, const Device *device) {
    questions++;
    if (!sessions) return UNINITIALIZED;
    if (device < devices || device >= devices + DEVICES) return INVALID_ARGUMENT;
    return lost ? IS_LOST : refusal(function);
}

static int put_text(const char *text, char *to, unsigned int size) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    if (flags) return INVALID_ARGUMENT;
    int error = refusal(__func__);
    if (!error) sessions++;
    return error;
}

int nvmlShutdown(void) {
    if (!sessions) return UNINITIALIZED;
    sessions--;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned int size) {
    int error = sessions ? refusal(__func__) : UNINITIALIZED;
    return error ? error : put_text("555.42.06", version, size);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    int error = sessions ? refusal(__func__) : UNINITIALIZED;
    if (error) return error;
    for (int i = 0; i < DEVICES; i++)
        if (!strcmp(uuid, devices[i].uuid)) {
            *device = &devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetMigMode(Device *device, unsigned int *current, unsigned int *pending) {
    int error = ready(__func__, device);
    if (error) return error;
    if (device->mig != MIG_OFF && device->mig != MIG_ON) return NOT_SUPPORTED;
    *current = *pending = device->mig == MIG_ON;
    return SUCCESS;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned int size) {
    int error = ready(__func__, device);
    return error ? error : put_text(device->name, name, size);
}

int nvmlDeviceGetClockInfo(Device *device, unsigned int type, unsigned int *mhz) {
    int error = ready(__func__, device);
    if (error) return error;
    if (type != CLOCK_SM && type != CLOCK_MEM) return INVALID_ARGUMENT;
    *mhz = type == CLOCK_SM ? device->sm_mhz : device->memory_mhz;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned int *milliwatts) {
    int error = ready(__func__, device);
    if (!error) *milliwatts = device->milliwatts;
    return error;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    int error = ready(__func__, device);
    if (error) return error;
    if (device->mig == SLICE) return NOT_SUPPORTED;
    *rates = (Utilization){device->gpu_percent, 11};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    int error = ready(__func__, device);
    if (!error)
        *memory = (Memory){16ULL << 30, (16ULL << 30) - device->used_bytes, device->used_bytes};
    return error;
}

int nvmlDeviceGetTemperature(Device *device, unsigned int sensor, unsigned int *celsius) {
    int error = ready(__func__, device);
    if (error) return error;
    if (sensor != TEMPERATURE_GPU) return INVALID_ARGUMENT;
    *celsius = device->celsius;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    int error = ready(__func__, device);
    if (error) return error;
    if (!device->counts_energy) return NOT_SUPPORTED;
    *millijoules = device->millijoules;
    device->millijoules += 250; /* between one reading and the next */
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) {
    int error = ready(__func__, device);
    if (error) return error;
    if (!device->counts_energy) return NOT_SUPPORTED;
    *reasons = device->reasons;
    return SUCCESS;
}
