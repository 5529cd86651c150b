/*
 * The stand-in Xen of the interop tests as a shared library, with what native/csrc/xen.c needs beside
 * it: watches, lists of children, and the one hypercall that tells whether a peer is still there.
 */
#define xs_open standin_xs_open
#define xs_close standin_xs_close
#define xs_write standin_xs_write
#define xs_rm standin_xs_rm
#define xs_read standin_xs_read
#define standin_in_use standin_all_in_use
#include "../interop/standin.c"
#undef standin_in_use
#undef xs_open
#undef xs_close
#undef xs_write
#undef xs_rm
#undef xs_read

#define WATCHES 16u

static struct watch { /* free when handle is NULL */
    struct xs_handle *handle;
    char path[NODE_TEXT];
    int fd; /* an eventfd with the number of events */
} watches[WATCHES];

/* One program cannot set a thread's variable of another language: this does. */
void standin_enter(unsigned domain)
{
    standin_domain = domain;
}

/* Without nodes that have no value: they say that a domain is there, and go with it. */
unsigned standin_in_use(void)
{
    unsigned used = standin_all_in_use();

    for (unsigned i = 0; i < NODES; i++)
        used -= nodes[i].path[0] && !nodes[i].value[0];
    return used;
}

/*
 * What happens when a domain ends: its ports close, no event is sent, its pages stay, and its nodes
 * are removed.
 */
void standin_kill(unsigned domain)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < NODES; i++)
        if (nodes[i].path[0] && nodes[i].owner == domain)
            nodes[i].path[0] = 0;
    for (unsigned i = 0; i < PORTS; i++)
        if (ports[i].owner && ports[i].owner->domain == domain) {
            if (ports[i].remote_port)
                ports[ports[i].remote_port - 1].remote_port = 0;
            ports[i].owner = NULL;
        }
    pthread_mutex_unlock(&lock);
}

/* Lets a domain read a node that is there. */
void standin_permit(const char *path, unsigned reader)
{
    pthread_mutex_lock(&lock);
    find_node(path)->reader = reader;
    pthread_mutex_unlock(&lock);
}

static void fire(const char *path)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < WATCHES; i++) {
        size_t length = strlen(watches[i].path);

        if (watches[i].handle && !strncmp(watches[i].path, path, length) &&
            (path[length] == 0 || path[length] == '/')) {
            ssize_t ignored = write(watches[i].fd, &one, sizeof one);

            (void)ignored;
        }
    }
    pthread_mutex_unlock(&lock);
}

struct xs_handle *xs_open(unsigned long flags)
{
    return standin_xs_open(flags);
}

void xs_close(struct xs_handle *handle)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < WATCHES; i++)
        if (handle && watches[i].handle == handle) {
            close(watches[i].fd);
            watches[i].handle = NULL;
        }
    pthread_mutex_unlock(&lock);
    standin_xs_close(handle);
}

void *xs_read(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
              unsigned *length)
{
    /* A thread that nobody assigned to a domain (the guard's) may read everything, as dom0 may. */
    if (!handle->domain && strcmp(path, "domid") != 0) {
        const struct node *node;
        char *value;

        pthread_mutex_lock(&lock);
        node = find_node(path);
        value = node ? strdup(node->value) : NULL;
        pthread_mutex_unlock(&lock);
        return value;
    }
    return standin_xs_read(handle, transaction, path, length);
}

bool xs_write(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
              const void *data, unsigned length)
{
    bool done = standin_xs_write(handle, transaction, path, data, length);

    fire(path);
    return done;
}

bool xs_rm(struct xs_handle *handle, xs_transaction_t transaction, const char *path)
{
    bool done = standin_xs_rm(handle, transaction, path);

    fire(path);
    return done;
}

char **xs_directory(struct xs_handle *handle, xs_transaction_t transaction, const char *path,
                    unsigned *count)
{
    char **names = calloc(1, NODES * (sizeof *names + NODE_TEXT)), *text;
    size_t length = strlen(path);
    bool is_there = false;

    (void)handle, (void)transaction;
    if (!names)
        return NULL;
    text = (char *)(names + NODES);
    *count = 0;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < NODES; i++) {
        is_there |= !strcmp(nodes[i].path, path);
        if (!strncmp(nodes[i].path, path, length) && nodes[i].path[length] == '/' &&
            !strchr(nodes[i].path + length + 1, '/')) {
            names[(*count)++] = strcpy(text, nodes[i].path + length + 1);
            text += NODE_TEXT;
        }
    }
    pthread_mutex_unlock(&lock);
    if (*count || is_there)
        return names;
    free(names);
    errno = ENOENT;
    return NULL;
}

/* One watch a handle is enough here. The token is always the path. */
bool xs_watch(struct xs_handle *handle, const char *path, const char *token)
{
    bool done = false;

    (void)token;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < WATCHES && !done; i++)
        if (!watches[i].handle) {
            watches[i].handle = handle;
            strcpy(watches[i].path, path);
            watches[i].fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK); /* one comes at once */
            done = true;
        }
    pthread_mutex_unlock(&lock);
    return done;
}

static struct watch *watch_of(const struct xs_handle *handle)
{
    for (unsigned i = 0; i < WATCHES; i++)
        if (watches[i].handle == handle)
            return &watches[i];
    return NULL;
}

bool xs_unwatch(struct xs_handle *handle, const char *path, const char *token)
{
    struct watch *watch = watch_of(handle);

    (void)path, (void)token;
    if (watch)
        watch->path[0] = '?'; /* nothing has such a name */
    return watch != NULL;
}

char **xs_check_watch(struct xs_handle *handle)
{
    const struct watch *watch = watch_of(handle);
    uint64_t count;
    char **event;

    errno = EAGAIN;
    if (!watch || read(watch->fd, &count, sizeof count) < 0)
        return NULL;
    event = calloc(1, 2 * sizeof *event + NODE_TEXT);
    event[0] = event[1] = strcpy((char *)(event + 2), watch->path);
    return event;
}

int xs_fileno(struct xs_handle *handle)
{
    const struct watch *watch = watch_of(handle);

    return watch ? watch->fd : -1;
}

/* ---- the hypercall ---- */

struct status {
    uint16_t domain;
    uint32_t port, status, vcpu;
    uint16_t remote_domain;
};

void *xencall_open(void *logger, unsigned flags)
{
    (void)logger, (void)flags;
    return calloc(1, 1);
}

void *xencall_alloc_buffer(void *handle, size_t size)
{
    (void)handle;
    return calloc(1, size);
}

int xencall2(void *handle, unsigned number, uint64_t operation, uint64_t argument)
{
    struct status *status = (struct status *)(uintptr_t)argument;

    (void)handle;
    if (number != 32 || operation != 5 || status->port < 1 || status->port > PORTS) {
        errno = EINVAL;
        return -1;
    }
    pthread_mutex_lock(&lock);
    status->status = ports[status->port - 1].owner == NULL        ? 0
                     : ports[status->port - 1].remote_port == 0 ? 1
                                                                : 2;
    status->remote_domain = (uint16_t)ports[status->port - 1].remote_domain;
    pthread_mutex_unlock(&lock);
    return 0;
}
