/* Streams, events, captures and graphs.

   Work is done as it is launched. With STANDIN_DELAY=SEED it is done only once something waits for
   it, and of the streams that could go on then, the seed chooses: each stream's work is in order,
   and after the events that it waits for, and that is all that CUDA promises. Within a launched
   graph the seed chooses among the nodes whose predecessors are done. */

#include "stand_in.h"

#define STREAMS 1024

typedef struct {
    unsigned long long id;
    int mode, open, broken, blocking, n, room;
    pthread_t thread;
    Node *nodes;
} Graph; /* also the capture that makes it */
typedef struct Item { Node node; struct Item *next; } Item;
typedef struct {
    int device, priority, blocking, origin, last; /* last: its latest node in the graph */
    Graph *capture;
    Item *first, *end;
} Stream;
/* One recording of an event: what waits for an event waits for its latest recording. They are not
   freed, because whoever waits may come late. */
typedef struct { int done; struct timespec at; } Recording;
typedef struct { Recording *recording; Graph *capture; int node; } Event;

long standin_counts[COUNTED];
void (*watch_graphs)(const Node *, int);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the queues */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* to do the work, one thread at a time */
static Stream legacy[DEVICES];
static Stream *streams[STREAMS];
static int num_streams;
static Graph *open_captures[64];
static __thread int thread_mode = cudaStreamCaptureModeGlobal;
static int delayed;
static unsigned seed;

__attribute__((constructor)) static void begin(void) {
    const char *given = getenv("STANDIN_DELAY");
    delayed = given && *given;
    if (delayed) seed = strtoul(given, NULL, 10) * 2654435761u + 1;
    for (int i = 0; i < DEVICES; i++) {
        legacy[i] = (Stream){.device = i, .blocking = 1};
        streams[num_streams++] = &legacy[i];
    }
}

/* NULL, cudaStreamLegacy and cudaStreamPerThread are the legacy stream. */
static Stream *of(cudaStream_t s) { return (size_t)s <= 2 ? &legacy[device] : (Stream *)s; }
static int is_legacy(const Stream *stream) { return stream >= legacy && stream < legacy + DEVICES; }
int captured(cudaStream_t s) { return of(s)->capture != NULL; }

/* ---- delayed work ---- */
static void perform(const Node *node) {
    if (node->call) node->call(node->data);
    else if (node->kind == COPY) memmove(node->to, node->from, node->size);
    else if (node->kind == FILL) memset(node->to, node->value, node->size);
}
static int choice(int n) { return n > 1 ? rand_r(&seed) % n : 0; }
/* The next piece of work, off its queue; NULL where there is none that may be done. */
static Item *take(void) {
    Stream *ready[STREAMS];
    int n = 0;
    for (int i = 0; i < num_streams; i++) {
        Item *item = streams[i]->first;
        if (item && (item->node.kind != WAIT || ((Recording *)item->node.data)->done))
            ready[n++] = streams[i];
    }
    if (!n) return NULL;
    Stream *stream = ready[choice(n)];
    Item *item = stream->first;
    if (!(stream->first = item->next)) stream->end = NULL;
    return item;
}
/* Do work until a recording is done, or a stream is empty, or all of them. */
static void until(const Recording *recording, const Stream *stream, int most) {
    static __thread int inside; /* a host function that frees memory comes here again */
    if (!delayed || inside) return;
    pthread_mutex_lock(&turn);
    inside = 1;
    while (most-- && !(recording && recording->done)) {
        pthread_mutex_lock(&lock);
        Item *item = stream && !stream->first ? NULL : take();
        pthread_mutex_unlock(&lock);
        if (!item) break;
        if (item->node.kind != WAIT) perform(&item->node);
        free(item);
    }
    inside = 0;
    pthread_mutex_unlock(&turn);
}
void drain(cudaStream_t *only) { until(NULL, only ? of(*only) : NULL, -1); }
/* A program may ask until the answer is yes. Other threads (NCCL's watchdog) only look: they hold
   no turn while the main one may hold Python's lock, which the work needs. */
static void step_on(void) { if (getpid() == gettid()) until(NULL, NULL, 1); }

static void push(Stream *stream, Node node) {
    Item *item = malloc(sizeof *item);
    *item = (Item){node, NULL};
    pthread_mutex_lock(&lock);
    if (stream->end) stream->end->next = item;
    else stream->first = item;
    stream->end = item;
    pthread_mutex_unlock(&lock);
}
/* The legacy stream and a blocking one wait for each other. */
static void order_with_legacy(const Stream *stream) {
    for (int i = 0; delayed && stream->blocking && i < num_streams; i++)
        if (streams[i]->blocking && streams[i] != stream && streams[i]->device == stream->device
            && is_legacy(streams[i]) != is_legacy(stream)) until(NULL, streams[i], -1);
}

/* ---- captures ---- */
static cudaError_t broken(Graph *capture, cudaError_t error, const char *what) {
    capture->broken = 1;
    return fail(error, what);
}
cudaError_t break_capture(cudaStream_t s) {
    Stream *stream = of(s);
    if (!stream->capture) return 0;
    return broken(stream->capture, cudaErrorStreamCaptureUnsupported, "a capturing stream");
}
cudaError_t unsafe(const char *what) {
    for (int i = 0; i < 64 && thread_mode != cudaStreamCaptureModeRelaxed; i++) {
        Graph *c = open_captures[i];
        if (!c || c->mode == cudaStreamCaptureModeRelaxed) continue;
        int global = c->mode == cudaStreamCaptureModeGlobal
            && thread_mode == cudaStreamCaptureModeGlobal;
        if (global || pthread_equal(c->thread, pthread_self()))
            return broken(c, cudaErrorStreamCaptureUnsupported, what);
    }
    return 0;
}
static int append(Graph *graph, Node node, int first, int second) {
    if (graph->n == graph->room)
        graph->nodes = realloc(graph->nodes, sizeof node * (graph->room = graph->room * 2 + 64));
    node.after[0] = first, node.after[1] = second;
    graph->nodes[graph->n] = node;
    return graph->n++;
}
/* A stream and its capture, if any, which is not broken. */
static cudaError_t enter(cudaStream_t s, Stream **stream, Graph **capture) {
    *stream = of(s), *capture = (*stream)->capture;
    if (*capture && (*capture)->broken) return fail(cudaErrorStreamCaptureInvalidated, "capture");
    for (int i = 0; i < 64 && is_legacy(*stream); i++)
        if (open_captures[i] && open_captures[i]->blocking)
            return broken(open_captures[i], cudaErrorStreamCaptureImplicit, "the legacy stream");
    return 0;
}
cudaError_t submit(cudaStream_t s, Node node) {
    Stream *stream;
    Graph *capture;
    cudaError_t error = enter(s, &stream, &capture);
    if (error) return error;
    if (capture) {
        stream->last = append(capture, node, stream->last, -1);
        return 0;
    }
    if (node.kind < COUNTED) __atomic_add_fetch(&standin_counts[node.kind], 1, __ATOMIC_SEQ_CST);
    order_with_legacy(stream);
    if (delayed) push(stream, node);
    else perform(&node);
    return 0;
}
/* For Python: -1 where it is refused, 0 where the caller shall do the call now, else 1. */
int standin_record(cudaStream_t s, cudaHostFn_t call, void *data, int kind) {
    Node node = {.kind = kind, .call = call, .data = data};
    int now = !captured(s) && !delayed;
    if (now) node.call = NULL; /* counted only */
    return submit(s, node) ? -1 : !now;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
    if (num_streams == STREAMS) return fail(cudaErrorMemoryAllocation, "too many streams");
    Stream *stream = calloc(1, sizeof *stream);
    stream->device = device, stream->priority = priority;
    stream->blocking = !(flags & cudaStreamNonBlocking);
    pthread_mutex_lock(&lock);
    streams[num_streams++] = stream;
    pthread_mutex_unlock(&lock);
    *s = (cudaStream_t)stream;
    return 0;
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = of(s)->priority; return 0; }
static cudaError_t refused(cudaStream_t s, const char *what) {
    cudaError_t error = break_capture(s);
    return error ? error : unsafe(what);
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    cudaError_t error = refused(s, "cudaStreamQuery");
    if (error || !of(s)->first) return error;
    step_on();
    return of(s)->first ? fail(cudaErrorNotReady, "cudaStreamQuery") : 0;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    standin_counts[WAITED]++;
    cudaError_t error = refused(s, "cudaStreamSynchronize");
    if (!error) drain(&s);
    return error;
}
cudaError_t cudaDeviceSynchronize(void) {
    standin_counts[WAITED]++;
    cudaError_t error = unsafe("cudaDeviceSynchronize");
    if (!error) drain(NULL);
    return error;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    static unsigned long long next_id = 1;
    Stream *stream = of(s);
    if (is_legacy(stream)) return fail(cudaErrorStreamCaptureUnsupported, "the legacy stream");
    if (stream->capture) return fail(cudaErrorIllegalState, "the stream is captured already");
    Graph *c = calloc(1, sizeof *c);
    *c = (Graph){.mode = mode, .open = 1, .blocking = stream->blocking, .thread = pthread_self()};
    pthread_mutex_lock(&lock);
    c->id = next_id++;
    int i = 0;
    while (open_captures[i]) i++;
    open_captures[i] = c;
    pthread_mutex_unlock(&lock);
    stream->capture = c, stream->origin = 1, stream->last = -1;
    return 0;
}
static void watch(const Graph *graph, int by) {
    for (int i = 0; watch_graphs && i < graph->n; i++) watch_graphs(&graph->nodes[i], by);
}
/* Whether all nodes come before the origin's last one: nodes stand after what they depend on. */
static int all_joined(const Graph *graph, int last) {
    char *before = calloc(graph->n + 1, 1);
    int joined = 0;
    if (last >= 0) before[last] = 1;
    for (int i = graph->n - 1; i >= 0; i--) {
        const int *after = graph->nodes[i].after;
        for (int k = 0; k < 2; k++) if (before[i] && after[k] >= 0) before[after[k]] = 1;
        joined += before[i];
    }
    free(before);
    return joined == graph->n;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    Stream *stream = of(s);
    Graph *c = stream->capture;
    *g = NULL;
    if (!c) return fail(cudaErrorIllegalState, "the stream is not captured");
    if (!stream->origin) return broken(c, cudaErrorStreamCaptureUnmatched, "not the first stream");
    if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->thread, pthread_self()))
        return broken(c, cudaErrorStreamCaptureWrongThread, "another thread began the capture");
    int joined = all_joined(c, stream->last);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 64; i++) if (open_captures[i] == c) open_captures[i] = NULL;
    for (int i = 0; i < num_streams; i++)
        if (streams[i]->capture == c) streams[i]->capture = NULL, streams[i]->origin = 0;
    pthread_mutex_unlock(&lock);
    c->open = 0;
    if (c->broken) return fail(cudaErrorStreamCaptureInvalidated, "the capture's end");
    if (!joined) return fail(cudaErrorStreamCaptureUnjoined, "the capture's end");
    watch(c, 1);
    *g = (cudaGraph_t)c;
    return 0;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    Graph *c = of(s)->capture;
    *status = !c ? cudaStreamCaptureStatusNone
        : c->broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return 0;
}
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t s, enum cudaStreamCaptureStatus *status,
        unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **after, size_t *n) {
    Graph *c = of(s)->capture;
    if (c && id) *id = c->id;
    if (g) *g = (cudaGraph_t)c;
    if (after) *after = NULL;
    if (n) *n = 0;
    return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    int before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return 0;
}

/* ---- graphs ---- */
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g,
                                          unsigned long long flags) {
    Graph *copy = malloc(sizeof *copy), *from = (Graph *)g;
    *copy = *from;
    copy->nodes = malloc(sizeof(Node) * (from->n + 1));
    memcpy(copy->nodes, from->nodes, sizeof(Node) * from->n);
    watch(copy, 1);
    *e = (cudaGraphExec_t)copy;
    return 0;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags) {
    return cudaGraphInstantiateWithFlags(e, g, flags);
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    Graph *graph = (Graph *)g;
    watch(graph, -1);
    free(graph->nodes);
    graph->nodes = NULL, graph->n = graph->room = 0; /* an event may still name the capture */
    return 0;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
    drain(NULL); /* a launch that is under way is finished first */
    return cudaGraphDestroy((cudaGraph_t)e);
}
static void run_graph(void *data) {
    const Graph *graph = data;
    if (!delayed) {
        for (int i = 0; i < graph->n; i++) perform(&graph->nodes[i]);
        return;
    }
    char *done = calloc(graph->n + 1, 1);
    int *ready = malloc(sizeof *ready * (graph->n + 1));
    for (int left = graph->n; left; left--) {
        int n = 0;
        for (int i = 0; i < graph->n; i++) {
            const int *after = graph->nodes[i].after;
            if (!done[i] && (after[0] < 0 || done[after[0]]) && (after[1] < 0 || done[after[1]]))
                ready[n++] = i;
        }
        int next = ready[choice(n)];
        done[next] = 1;
        perform(&graph->nodes[next]);
    }
    free(ready);
    free(done);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    return submit(s, (Node){.kind = GRAPH, .call = run_graph, .data = e});
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) {
    *n = ((Graph *)g)->n;
    return 0;
}

/* ---- events ---- */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    *e = calloc(1, sizeof(Event));
    return 0;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return 0; }
static void finish(void *data) {
    Recording *recording = data;
    clock_gettime(CLOCK_MONOTONIC, &recording->at);
    recording->done = 1;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) {
    Event *event = (Event *)e;
    Stream *stream;
    Graph *capture;
    cudaError_t error = enter(s, &stream, &capture);
    if (error) return error;
    event->capture = capture, event->node = stream->last, event->recording = NULL;
    if (capture) return 0;
    event->recording = calloc(1, sizeof *event->recording);
    return submit(s, (Node){.kind = RECORD, .call = finish, .data = event->recording});
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    return cudaEventRecordWithFlags(e, s, 0);
}
static cudaError_t event_refused(const Event *event, const char *what) {
    if (event->capture && event->capture->open)
        return broken(event->capture, cudaErrorCapturedEvent, what);
    return unsafe(what);
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    const Event *event = (Event *)e;
    cudaError_t error = event_refused(event, "cudaEventQuery");
    if (error || !event->recording || event->recording->done) return error;
    step_on();
    return event->recording->done ? 0 : fail(cudaErrorNotReady, "cudaEventQuery");
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    const Event *event = (Event *)e;
    standin_counts[WAITED]++;
    cudaError_t error = event_refused(event, "cudaEventSynchronize");
    if (!error && event->recording) until(event->recording, NULL, -1);
    return error;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    const Recording *x = ((Event *)a)->recording, *y = ((Event *)b)->recording;
    if (!x || !y) return fail(cudaErrorInvalidResourceHandle, "an event that was not recorded");
    if (!x->done || !y->done) return fail(cudaErrorNotReady, "cudaEventElapsedTime");
    *ms = (y->at.tv_sec - x->at.tv_sec) * 1e3f + (y->at.tv_nsec - x->at.tv_nsec) * 1e-6f;
    return 0;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    const Event *event = (Event *)e;
    Stream *stream;
    Graph *capture, *from = event->capture && event->capture->open ? event->capture : NULL;
    cudaError_t error = enter(s, &stream, &capture);
    if (error) return error;
    if (capture && from != capture && (from || event->recording))
        return broken(capture, cudaErrorStreamCaptureIsolation, "a wait for uncaptured work");
    if (from) {
        if (is_legacy(stream))
            return broken(from, cudaErrorStreamCaptureImplicit, "the legacy stream");
        if (!capture) stream->capture = from, stream->last = -1; /* it joins the capture */
        stream->last = append(from, (Node){.kind = JOIN}, stream->last, event->node);
    } else if (event->recording && !event->recording->done)
        push(stream, (Node){.kind = WAIT, .data = event->recording});
    return 0;
}
