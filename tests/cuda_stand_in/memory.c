/* Device and pinned memory, which are the host's, with copies and fills. */

#include "stand_in.h"
#include <sys/mman.h>

#define SPOILT (32 << 20) /* bytes of a block that are NaN at first, in any floating type, and -1 */

typedef struct { char *at; size_t size; int kind, device; } Block;
static Block blocks[65536];
static int num_blocks;
static size_t taken[DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static Block find(const void *p) { /* the block with this address; kind 0 (unregistered) if none */
    Block found = {NULL, 0, cudaMemoryTypeUnregistered, -2};
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_blocks && !found.at; i++)
        if ((char *)p >= blocks[i].at && (char *)p < blocks[i].at + blocks[i].size)
            found = blocks[i];
    pthread_mutex_unlock(&lock);
    return found;
}
static cudaError_t take(void **p, size_t size, int kind, const char *what) {
    *p = NULL;
    cudaError_t error = unsafe(what);
    if (error || !size) return error;
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    pthread_mutex_lock(&lock);
    size_t *used = &taken[device];
    int full = at == MAP_FAILED || (kind == cudaMemoryTypeDevice && *used + size > MEMORY);
    int i = 0;
    while (!full && i < num_blocks && blocks[i].at) i++;
    if (!full) {
        num_blocks += i == num_blocks;
        blocks[i] = (Block){at, size, kind, device};
        if (kind == cudaMemoryTypeDevice) *used += size;
    }
    pthread_mutex_unlock(&lock);
    if (full && at != MAP_FAILED) munmap(at, size);
    if (full) return fail(cudaErrorMemoryAllocation, what);
    if (kind == cudaMemoryTypeDevice) memset(at, 0xff, size < SPOILT ? size : SPOILT);
    *p = at;
    return 0;
}
static cudaError_t release(void *p, const char *what) {
    cudaError_t error = p ? unsafe(what) : 0;
    if (error || !p) return error;
    drain(NULL); /* memory is not freed under work that uses it */
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < num_blocks && blocks[i].at != p) i++;
    if (i < num_blocks) {
        munmap(p, blocks[i].size);
        if (blocks[i].kind == cudaMemoryTypeDevice) taken[blocks[i].device] -= blocks[i].size;
        blocks[i] = (Block){0};
    }
    pthread_mutex_unlock(&lock);
    return i < num_blocks ? 0 : fail(cudaErrorInvalidValue, what);
}
cudaError_t cudaMalloc(void **p, size_t n) { return take(p, n, cudaMemoryTypeDevice, "cudaMalloc"); }
cudaError_t cudaFree(void *p) { return release(p, "cudaFree"); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) {
    return take(p, n, cudaMemoryTypeHost, "cudaHostAlloc");
}
cudaError_t cudaFreeHost(void *p) { return release(p, "cudaFreeHost"); }
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *total = MEMORY;
    *left = MEMORY - taken[device];
    return 0;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    Block block = find(p);
    *a = (struct cudaPointerAttributes){.type = block.kind, .device = block.device};
    if (block.at) a->devicePointer = (void *)p;
    if (block.kind != cudaMemoryTypeDevice) a->hostPointer = (void *)p;
    return 0;
}
CUresult cuPointerGetAttribute(void *to, CUpointer_attribute a, CUdeviceptr p) {
    if (!find((void *)p).at) return CUDA_ERROR_INVALID_VALUE;
    if (a == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)to = p;
    else *(int *)to = 0;
    return 0;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind,
                            cudaStream_t s) {
    if (!find(to).at || !find(from).at) { /* pageable memory: the host takes part, so it waits */
        cudaError_t error = break_capture(s);
        if (error) return error;
        drain(&s);
    }
    cudaError_t error = submit(s, (Node){.kind = COPY, .to = to, .from = from, .size = n});
    if (!error && !captured(s) && (!find(to).at || !find(from).at)) drain(&s);
    return error;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
    standin_counts[WAITED]++;
    cudaError_t error = unsafe("cudaMemcpy");
    if (!error) error = cudaMemcpyAsync(to, from, n, kind, NULL);
    if (!error) drain(&(cudaStream_t){NULL});
    return error;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t s) {
    return submit(s, (Node){.kind = FILL, .to = to, .value = value, .size = n});
}
