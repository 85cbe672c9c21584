/* Launches of kernels, which do nothing, and the driver's interface. */

#include "stand_in.h"
#include <dlfcn.h>

/* Such a call might let a test pass that nothing was tested by. */
long standin_unforeseen(const char *what) {
    fprintf(stderr, "[stand-in] unforeseen: %s\n", what);
    _exit(87);
}
/* A kernel does nothing: with values.py none may be launched but Triton's, which it interprets. */
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream s, void **arguments,
                        void **extra) {
    const char *values = getenv("STANDIN_VALUES");
    if (values && *values == '1') standin_unforeseen("a kernel without values");
    size_t threads = (size_t)bx * by * bz;
    if (!gx || !gy || !gz || gx > 2147483647 || gy > 65535 || gz > 65535 || !threads
        || threads > 1024 || bz > 64)
        return (CUresult)fail(cudaErrorInvalidConfiguration, "a launch");
    if (shared > (unsigned)attribute_of(cudaDevAttrMaxSharedMemoryPerBlockOptin))
        return (CUresult)fail(cudaErrorInvalidValue, "a launch's shared memory");
    return (CUresult)submit(s, (Node){.kind = KERNEL});
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **arguments, void **extra) {
    return cuLaunchKernel(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY,
                          c->blockDimZ, c->sharedMemBytes, c->hStream, arguments, extra);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *data) {
    return submit(s, (Node){.kind = HOST, .call = call, .data = data});
}

/* ---- the driver ---- */
CUresult cuDeviceGet(CUdevice *d, int i) { *d = i; return 0; }
CUresult cuDeviceGetCount(int *n) { *n = device_count(); return 0; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
    *v = attribute_of((int)a); /* both interfaces number them alike */
    return 0;
}
/* A function by its name. What the library lacks is absent, as from an older driver. */
static void *entry(const char *name) {
    static void *self;
    Dl_info info;
    if (!self && dladdr((void *)entry, &info))
        self = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return dlsym(self, name);
}
cudaError_t cudaGetDriverEntryPoint(const char *name, void **f, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *result) {
    *f = entry(name);
    if (result) *result = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return *f ? 0 : fail(cudaErrorSymbolNotFound, name);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version,
        unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    return cudaGetDriverEntryPoint(name, f, flags, result);
}
CUresult cuGetProcAddress_v2(const char *name, void **f, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *result) {
    *f = entry(name);
    if (result) *result = *f ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *f ? 0 : CUDA_ERROR_NOT_FOUND;
}
