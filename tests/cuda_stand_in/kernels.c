/* Launches of kernels, which do nothing, and the driver's interface. */

#include "stand_in.h"
#include <dlfcn.h>

static __thread struct { dim3 grid, block; size_t shared; cudaStream_t stream; } pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
    *(cudaStream_t *)stream = pushed.stream;
    return 0;
}
/* Such a call might let a test pass that nothing was tested by. */
long standin_unforeseen(const char *what) {
    fprintf(stderr, "[stand-in] unforeseen: %s\n", what);
    _exit(87);
}
/* A kernel does nothing: with values.py none may be launched but Triton's, which it interprets. */
static void without_values(int interpreted) {
    const char *values = getenv("STANDIN_VALUES");
    if (values && *values && !(interpreted && *values == '2'))
        standin_unforeseen("a kernel without values");
}
static cudaError_t launch(dim3 grid, dim3 block, size_t shared, cudaStream_t s) {
    size_t threads = (size_t)block.x * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.x > 2147483647 || grid.y > 65535 || grid.z > 65535
        || !threads || threads > 1024 || block.z > 64)
        return fail(cudaErrorInvalidConfiguration, "a launch");
    if (shared > (size_t)attribute_of(cudaDevAttrMaxSharedMemoryPerBlockOptin))
        return fail(cudaErrorInvalidValue, "a launch's shared memory");
    return submit(s, (Node){.kind = KERNEL});
}
cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t s) {
    without_values(0);
    return launch(grid, block, shared, s);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **arguments) {
    return cudaLaunchKernel(f, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream);
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, CUstream s, void **arguments,
                        void **extra) {
    without_values(1);
    return (CUresult)launch((dim3){gx, gy, gz}, (dim3){bx, by, bz}, shared, s);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **arguments, void **extra) {
    return cuLaunchKernel(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY,
                          c->blockDimZ, c->sharedMemBytes, c->hStream, arguments, extra);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *data) {
    return submit(s, (Node){.kind = HOST, .call = call, .data = data});
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    *a = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 32,
        .ptxVersion = 80, .binaryVersion = 80, .maxDynamicSharedSizeBytes = 48 << 10};
    return 0;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
    *v = a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32
        : a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return 0;
}

/* ---- the driver ---- */
CUresult cuDeviceGet(CUdevice *d, int i) { *d = i; return 0; }
CUresult cuDeviceGetCount(int *n) { *n = device_count(); return 0; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
    *v = attribute_of((int)a); /* both interfaces number them alike */
    return 0;
}
CUresult cuCtxGetCurrent(CUcontext *c) { *c = (CUcontext)(size_t)(16 + device); return 0; }
CUresult cuCtxGetDevice(CUdevice *d) { *d = device; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
    *c = (CUcontext)(size_t)(16 + d);
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
