/* What the parts of the stand-in share. */

#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEVICES 8
#define MEMORY (16ULL << 30)

/* What is counted, in the order that __init__.py names them; then what only keeps order. */
enum { KERNEL, LIBRARY, COPY, FILL, HOST, GRAPH, WAITED, COUNTED, RECORD, WAIT, JOIN };

/* A piece of work of a stream or a graph: a call, a copy, a fill, or nothing but its kind. */
typedef struct {
    int kind, value;
    const void *from;
    void *to;
    size_t size;
    cudaHostFn_t call;
    void *data;
    int after[2]; /* in a graph: the nodes that it depends on, or -1 */
} Node;

#pragma GCC visibility push(hidden) /* a preloaded name would hide another library's own */
extern __thread int device;
extern void (*watch_graphs)(const Node *, int by); /* a graph with this node was made or destroyed */

cudaError_t fail(cudaError_t error, const char *what); /* keeps it as the last error */
int device_count(void);
int attribute_of(int attribute);
cudaError_t submit(cudaStream_t s, Node node);
cudaError_t unsafe(const char *what);    /* refused while a capture runs that this thread minds */
cudaError_t break_capture(cudaStream_t); /* refused on a stream that is captured */
int captured(cudaStream_t s);
void drain(cudaStream_t *only); /* do what a stream, or every one, has yet to do */
#pragma GCC visibility pop
extern long standin_counts[COUNTED];
long standin_unforeseen(const char *what); /* ends the process: nothing here means it */
