/* Devices, their properties and the errors of calls. */

#include "stand_in.h"

__thread int device;
static __thread cudaError_t last_error;

cudaError_t fail(cudaError_t error, const char *what) {
    last_error = error;
    if (getenv("STANDIN_LOG")) fprintf(stderr, "[stand-in] error %d: %s\n", error, what);
    return error;
}
/* As many as STANDIN_DEVICES says, of which CUDA_VISIBLE_DEVICES may hide some. */
int device_count(void) {
    static int n = -1;
    if (n >= 0) return n;
    n = getenv("STANDIN_DEVICES") ? atoi(getenv("STANDIN_DEVICES")) : 1;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) return n;
    int named = *visible && *visible != '-';
    for (const char *c = visible; *c; c++) named += *c == ',';
    return n = named < n ? named : n;
}

cudaError_t cudaGetDeviceCount(int *n) {
    *n = device_count();
    return *n ? 0 : fail(cudaErrorNoDevice, "cudaGetDeviceCount");
}
cudaError_t cudaGetDevice(int *d) { *d = device; return 0; }
cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= device_count()) return fail(cudaErrorInvalidDevice, "cudaSetDevice");
    device = d;
    return 0;
}
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = 0;
    return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorString(cudaError_t error) {
    switch ((int)error) {
    case 0: return "no error";
    case 1: return "invalid argument";
    case 2: return "out of memory";
    case 9: return "invalid configuration argument";
    case 101: return "invalid device ordinal";
    case 600: return "device not ready";
    case 900: return "operation not permitted when stream is capturing";
    case 901: return "operation failed due to a previous error during capture";
    case 904: return "capturing stream has unjoined work";
    case 905: return "dependency created on uncaptured work in another stream";
    case 907: return "operation not permitted on an event last recorded in a capturing stream";
    }
    return "stand-in error";
}
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) {
    if (d < 0 || d >= device_count()) return fail(cudaErrorInvalidDevice, "properties");
    *p = (struct cudaDeviceProp){ /* an A100's, with less memory */
        .totalGlobalMem = MEMORY, .totalConstMem = 65536, .l2CacheSize = 40 << 20,
        .sharedMemPerBlock = 48 << 10, .sharedMemPerMultiprocessor = 164 << 10,
        .sharedMemPerBlockOptin = 163 << 10, .regsPerBlock = 65536,
        .regsPerMultiprocessor = 65536, .warpSize = 32, .maxThreadsPerBlock = 1024,
        .maxThreadsDim = {1024, 1024, 64}, .maxGridSize = {2147483647, 65535, 65535},
        .major = 8, .multiProcessorCount = 108,
        .maxThreadsPerMultiProcessor = 2048, .maxBlocksPerMultiProcessor = 32,
        .textureAlignment = 512, .clockRate = 1410000, .memoryClockRate = 1215000,
        .memoryBusWidth = 5120, .concurrentKernels = 1, .unifiedAddressing = 1,
        .managedMemory = 1, .canMapHostMemory = 1, .cooperativeLaunch = 1,
        .asyncEngineCount = 3, .pciBusID = d + 1};
    snprintf(p->name, sizeof p->name, "Stand-in %c", 'A' + d);
    memcpy(p->uuid.bytes, "....\0\0\x11\x11\x22\x22\x33\x33\x33\x33\x33\x33", 16);
    memset(p->uuid.bytes, 0xaa + 0x11 * d, 4); /* as nvml_stand_in.c has it */
    return 0;
}
int attribute_of(int attribute) {
#define ATTRIBUTE(name, value) case cudaDevAttr##name: return p.value
    struct cudaDeviceProp p;
    cudaGetDeviceProperties_v2(&p, 0);
    switch (attribute) {
    ATTRIBUTE(MaxThreadsPerBlock, maxThreadsPerBlock); ATTRIBUTE(MaxGridDimX, maxGridSize[0]);
    ATTRIBUTE(MaxBlockDimX, maxThreadsDim[0]); ATTRIBUTE(MaxBlockDimY, maxThreadsDim[1]);
    ATTRIBUTE(MaxBlockDimZ, maxThreadsDim[2]); ATTRIBUTE(WarpSize, warpSize);
    ATTRIBUTE(MaxSharedMemoryPerBlock, sharedMemPerBlock); ATTRIBUTE(ClockRate, clockRate);
    ATTRIBUTE(MaxRegistersPerBlock, regsPerBlock); ATTRIBUTE(L2CacheSize, l2CacheSize);
    ATTRIBUTE(MultiProcessorCount, multiProcessorCount);
    ATTRIBUTE(MemoryClockRate, memoryClockRate); ATTRIBUTE(CooperativeLaunch, cooperativeLaunch);
    ATTRIBUTE(GlobalMemoryBusWidth, memoryBusWidth);
    ATTRIBUTE(MaxThreadsPerMultiProcessor, maxThreadsPerMultiProcessor);
    ATTRIBUTE(ComputeCapabilityMajor, major); ATTRIBUTE(ComputeCapabilityMinor, minor);
    ATTRIBUTE(MaxSharedMemoryPerMultiprocessor, sharedMemPerMultiprocessor);
    ATTRIBUTE(MaxRegistersPerMultiprocessor, regsPerMultiprocessor);
    ATTRIBUTE(MaxSharedMemoryPerBlockOptin, sharedMemPerBlockOptin);
    ATTRIBUTE(MaxBlocksPerMultiprocessor, maxBlocksPerMultiProcessor);
    }
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
    *v = attribute_of(a);
    return 0;
}
